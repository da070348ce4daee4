// Backward pass. Tiles run from the last to the first; each is recomputed from its checkpoint, then walked backwards.
struct Args {
  Size size;
  Map u, delta, z, dy, du, ddelta, dz, kept;  // kept: y before its gate
  Mix B, C, dB, dC;
  const float *A, *D, *bias, *last;
  float *first, *mixing, *params;
  char* saved;
  const T* weight;  // and its transpose behind it
};

// Sums over lanes by the tensor cores: a constant 0/1 matrix sends each lane's value n to row n, and the product adds over
// lanes. Lane 4r + g receives states r and r + 8 of the lanes 8g ... 8g + 7, always in the same order.
struct Sums {
#if KIND == 0
  u32 select[4], zero[4];
  DI void init(int lane, const u32* zero_word) {  // the zeros are opaque, or the operands are put together anew each step
    const int r = lane >> 2;
    UNROLL for (int i = 0; i < 4; i++) {
      select[i] = (r == 2 * i ? 0x3f80u : 0u) | (r == 2 * i + 1 ? 0x3f800000u : 0u);
      zero[i] = opaque(zero_word);
    }
  }
  // `c` for states below 8 and `e` for the others, in two columns each: the lanes 8g ... 8g + 3 and 8g + 4 ... 8g + 7.
  DI void columns(const u32* w, float* c, float* e) const {
    UNROLL for (int i = 0; i < 4; i++) c[i] = e[i] = 0.f;
    UNROLL for (int i = 0; i < NL / 4; i++) {
      const int j = i % 2 * 2;
      mma_bfloat16(i < 2 ? c : e, select[j], zero[j], select[j + 1], zero[j + 1], w[2 * i], w[2 * i + 1]);
    }
  }
  DI void add(const u32* w, float& lo, float& hi) const {
    float c[4], e[4]; columns(w, c, e);
    lo = c[0] + c[1]; hi = e[0] + e[1];
  }
#else
  u32 select[8];
  DI void init(int lane, const u32*) {
    UNROLL for (int i = 0; i < 8; i++) select[i] = (lane >> 2) == i ? 0x3f800000u : 0u;
  }
  DI void add(const float* v, float& lo, float& hi) const {
    float c[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0};
    UNROLL for (int i = 0; i < NL / 2; i++) {
      float* to = i < 4 ? c : e; const u32 s0 = select[i % 4 * 2], s1 = select[i % 4 * 2 + 1];
#if KIND == 1
      mma_tf32(to, s0, 0u, s1, 0u, v[2 * i], v[2 * i + 1]);
#else  // tf32 keeps 10 bits: the upper part and the rest go one after the other
      const float a = __uint_as_float(__float_as_uint(v[2 * i]) & 0xffffe000u);
      const float b = __uint_as_float(__float_as_uint(v[2 * i + 1]) & 0xffffe000u);
      mma_tf32(to, s0, 0u, s1, 0u, a, b);
      mma_tf32(to, s0, 0u, s1, 0u, v[2 * i] - a, v[2 * i + 1] - b);
#endif
    }
    lo = c[0] + c[1]; hi = e[0] + e[1];
  }
#endif
};

// A step's dB and dC, summed over the warp's channels, go to shared memory as [SPW][NT] pairs. A warp of several sequences is
// short of shared memory: its pairs are bfloat16 if the maps are. Behind all pairs lie the sums of dx, [TS][SPW][LOW], bfloat16
// under the same condition.
#if KIND == 0
template <int CW> constexpr bool SHORT = RW / CW > 1;
typedef u32 Product;  // two states
#else
template <int CW> constexpr bool SHORT = false;
typedef float Product;
#endif
template <int CW> struct Partials {
  static constexpr int SPW = RW / CW, WORDS = SHORT<CW> ? NT : 2 * NT, STEP = SPW * WORDS;  // in words
  static constexpr int LOW_WORDS = KIND == 0 ? LOW / 2 : LOW, TILE = TS * (STEP + SPW * LOW_WORDS);
  Sums sums;
#if KIND == 0
  u32 merge[4];  // of dB below state 8, dB above, dC below, dC above: the column that takes the sum over a lane group
#endif
  DI void init(int lane, const u32* zero_word) {
    sums.init(lane, zero_word);
#if KIND == 0
    const int r = lane >> 2, g = lane & 3;
    UNROLL for (int x = 0; x < 4; x++) {
      const int column = CW == 32 ? 2 * x : 2 * (g / 2 * 2 + x % 2) + x / 2;
      merge[x] = r == column ? 0x3f800000u : 0u;
    }
#endif
  }
  DI static void put_pair(float* to, int n, float b, float c) {
    if constexpr (SHORT<CW>) ((u32*)to)[n] = pack(b, c);
    else { to[n] = b; to[NT + n] = c; }
  }
  DI static float* place_of(float* to, int lane0) {  // where the sequence and states of a lane's group begin
    return to + lane0 % RW / CW * WORDS + lane0 / RW * NL;
  }
  struct Held { float v[4]; };  // a lane's sums of a step, not yet in shared memory
  DI Held add(const Product* b, const Product* c, int lane) const {
    const bool odd = lane & 1, second = lane & 2;
#if KIND == 0
    if constexpr (CW > 8) {
      float lo[4], hi[4], all[4] = {0.f, 0.f, 0.f, 0.f};
      UNROLL for (int x = 0; x < 4; x += 2) {
        sums.columns(x ? c : b, lo, hi);
        mma_tf32_short(all, lo[0], lo[1], merge[x]);
        if (NL > 8) mma_tf32_short(all, hi[0], hi[1], merge[x + 1]);
      }
      return {all[0] + all[2], all[1] + all[3], 0.f, 0.f};
    }
#endif
    float b0, b1, c0, c1;
    sums.add(b, b0, b1); sums.add(c, c0, c1);
    if constexpr (CW == 8) return {b0, c0, b1, c1};
    else if constexpr (NL > 8) {
      float x = (odd ? b1 : b0) + from_lane_xor(odd ? b0 : b1, 1), y = (odd ? c1 : c0) + from_lane_xor(odd ? c0 : c1, 1);
      if (CW == 32) x = (second ? y : x) + from_lane_xor(second ? x : y, 2);
      return {x, y, 0.f, 0.f};
    } else {  // no states from 8 on
      float x = b0 + from_lane_xor(b0, 1), y = c0 + from_lane_xor(c0, 1);
      if (CW == 32) { x += from_lane_xor(x, 2); y += from_lane_xor(y, 2); x = second ? y : x; }
      return {x, y, 0.f, 0.f};
    }
  }
  DI void write(float* to, const Held& s, int lane) const {
    const int r = lane >> 2, g = lane & 3, n = g & 1 ? r + 8 : r;
    if constexpr (CW == 32) { if (n < NL) to[g & 2 ? NT + n : n] = s.v[0]; }
    else if constexpr (CW == 16) { if (n < NL) put_pair(place_of(to, g / 2 * 16), n, s.v[0], s.v[1]); }
    else {
      to = place_of(to, 8 * g);
      if (r < NL) put_pair(to, r, s.v[0], s.v[1]);
      if (r + 8 < NL) put_pair(to, r + 8, s.v[2], s.v[3]);
    }
  }
  // Four neighbouring values of dB (which = 0), dC or dx of one step and sequence from a warp's tile of sums.
  DI static float4 four(const float* tile, int k, int sub, int which, int n) {
    if (RANK && which == 2) {
      const float* from = tile + TS * STEP + (k * SPW + sub) * LOW_WORDS;
      if (KIND != 0) return *(const float4*)(from + n);
      const uint2 w = *(const uint2*)(from + n / 2);
      return make_float4(low(w.x), high(w.x), low(w.y), high(w.y));
    }
    const float* from = tile + k * STEP + sub * WORDS;
    if constexpr (SHORT<CW>) {
      const uint4 w = *(const uint4*)(from + n);
      return which ? make_float4(high(w.x), high(w.y), high(w.z), high(w.w)) : make_float4(low(w.x), low(w.y), low(w.z), low(w.w));
    } else return *(const float4*)(from + which * NT + n);
  }
};

// Gradients of a low-rank step, from a tile of ddelta: step k at ddelta + k * pitch, [RW].
template <int CW> struct LowGradients {
  static constexpr int BLOCKS = CW < 16 ? 1 : CW / 16, RANKS = (RANK + 7) / 8;
  float weight[BLOCKS][RANKS > 0 ? RANKS : 1][4];  // of 16 channels and 8 ranks each, summed over steps and sequences
#if KIND == 2
  struct Two { float at, later; };
#else
  struct Two { u32 pair; };
#endif
  Two x[RW / CW][RANKS > 0 ? RANKS : 1];  // a lane's part of the tile's x, whose place the next tile takes
  DI void init() {
    UNROLL for (int i = 0; i < BLOCKS; i++)
      UNROLL for (int j = 0; j < RANKS; j++)
        UNROLL for (int k = 0; k < 4; k++) weight[i][j][k] = 0.f;
  }
  DI void take(const T* tile, int lane) {
    const int r = lane / 4, q = lane % 4;
    UNROLL for (int sub = 0; sub < RW / CW; sub++) UNROLL for (int j = 0; j < RANKS; j++) {
      const T* from = tile + (sub * TS + q) * LOW + j * 8 + r; const bool there = j * 8 + r < LOW;
      const T at = there ? from[0] : 0, later = there ? from[4 * LOW] : 0;
#if KIND == 2
      x[sub][j] = {at, later};
#else
      x[sub][j] = {at | (u32)later << 16};
#endif
    }
  }
  // dx, summed over the warp's channels, to its place in a tile of sums; `turned` is delta_weight [rank][channel].
  DI static void sum_channels(const T* ddelta, int pitch, const T* turned, float* part, int d0, const Size& z, int lane) {
    constexpr int K = CW < K_LOW ? CW : K_LOW;
    const int r = lane / 4, q = lane % 4; const i64 row = ((int)z.channels + 31) / 32 * 32;
    UNROLL for (int sub = 0; sub < RW / CW; sub++) {
      UNROLL for (int first = 0; first < LOW; first += 16) {
        const T* w = turned + (first + r) * row + d0 + q * K / 4; const T* column = ddelta + r * pitch + sub * CW + q * K / 4;
        float c[4] = {0.f, 0.f, 0.f, 0.f};
        UNROLL for (int k = 0; k < CW; k += K) multiply<K>(c, w + k, w + 8 * row + k, column + k, K);
        UNROLL for (int i = 0; i < 4; i++) {
          const int n = first + r + i / 2 * 8, k = 2 * q + i % 2, cell = (k * (RW / CW) + sub) * LOW + n;
          float* sums = part + TS * Partials<CW>::STEP;
          if (n < LOW) { if (KIND == 0) ((u16*)sums)[cell] = to_bfloat16(c[i]); else sums[cell] = c[i]; }
        }
      }
    }
  }
  DI void sum_steps(const T* ddelta, int pitch, int lane) {
    const int r = lane / 4, q = lane % 4;
    UNROLL for (int sub = 0; sub < RW / CW; sub++) {
      UNROLL for (int i = 0; i < BLOCKS; i++) {
        const T *at = ddelta + q * pitch + sub * CW + i * 16 + r, *later = at + 4 * pitch;
        const float a[4] = {get(at[0]), CW < 16 ? 0.f : get(at[8]), get(later[0]), CW < 16 ? 0.f : get(later[8])};
        UNROLL for (int j = 0; j < RANKS; j++) {
#if KIND == 2
          multiply(weight[i][j], a, {x[sub][j].at, x[sub][j].later});
#else
          multiply(weight[i][j], a, {get((T)x[sub][j].pair), get((T)(x[sub][j].pair >> 16))});
#endif
        }
      }
    }
  }
  DI void store(float* to, int d0, int d_end, int lane) const {  // [channel][RANK]
    const int r = lane / 4, q = lane % 4;
    UNROLL for (int i = 0; i < BLOCKS; i++)
      UNROLL for (int j = 0; j < RANKS; j++)
        UNROLL for (int k = 0; k < 4; k++) {
          const int d = d0 + i * 16 + r + k / 2 * 8, n = j * 8 + 2 * q + k % 2;
          if (d < d_end && n < RANK && (CW >= 16 || k < 2)) to[(i64)d * RANK + n] = weight[i][j][k];
        }
  }
};

constexpr int STEPS_AT_ONCE = AT_ONCE;
struct Scalars { float dt, gy, u, slope; };  // of one step and lane, from the recomputation to the walk back

template <int CW> struct Backward {
  static constexpr int SPW = RW / CW, TILE = TS * RW, DY = RANK ? 1 : 2, MAPS = DY + 1 + HAS_Z + KEEP_Y, SLOT = 32 * States::BYTES;
  static constexpr int SCALARS = TS * 32 * (KIND != 0 ? 16 : LEAN ? 10 : 12);
  static constexpr int MIX = SPW * MixTile<CW>::PITCH * 4, RAW = MixTile<CW>::RAW * ES, PART = Partials<CW>::TILE * 4;
  // LEAN: the next tile's B and C come into slots whose states have been read, behind the ROWS bytes of du and ddelta.
  static constexpr int ROWS = 2 * RW * ES;
  static_assert(!LEAN || (SLOT - ROWS >= RAW && SPW <= TS / 2), "no room for B and C among the states");
  static constexpr int RAW_PITCH = (LEAN ? -SLOT : RAW) / ES;
  static constexpr int O_SCALARS = TS * SLOT, O_CHECK = O_SCALARS + SCALARS, O_MIX = O_CHECK + SLOT, O_MAPS = O_MIX + MIX;
  static constexpr int O_PART = O_MAPS + MAPS * TILE * ES, O_RAW = LEAN ? (TS - 1) * SLOT + ROWS : O_PART + BUFFERS * PART;
  static constexpr int O_LOW = O_PART + BUFFERS * PART + (LEAN ? 0 : (SPW * RAW + 15) / 16 * 16);
  static constexpr int BYTES = O_LOW + LowTile<CW>::TILE * ES;

  // For bfloat16 maps u and the slope take half a word each; where memory is scarce the slope is found again from dt.
  DI static void keep(char* shared, int k, int lane, const Scalars& s) {
    char* at = shared + O_SCALARS; const int i = k * 32 + lane;
    if constexpr (KIND != 0) ((float4*)at)[i] = make_float4(s.dt, s.gy, s.u, s.slope);
    else {
      ((float2*)at)[i] = make_float2(s.dt, s.gy);
      if (LEAN) ((u16*)(at + TS * 256))[i] = to_bfloat16(s.u); else ((u32*)(at + TS * 256))[i] = pack(s.u, s.slope);
    }
  }
  // Where the raw steps of low rank wait for the recomputation, which puts dt there: floats [TS][32], of every lane.
  DI static float& raw_step(char* shared, int k, int lane) {
    return ((float*)(shared + O_SCALARS))[(k * 32 + lane) * (KIND != 0 ? 4 : 2)];
  }
  DI static Scalars recall(const char* shared, int k, int lane) {
    const char* at = shared + O_SCALARS; const int i = k * 32 + lane;
    if constexpr (KIND != 0) {
      const float4 x = ((const float4*)at)[i];
      return {x.x, x.y, x.z, x.w};
    } else {
      const float2 x = ((const float2*)at)[i];
      if (LEAN) return {x.x, x.y, low(((const u16*)(at + TS * 256))[i]), slope_of(x.x)};
      const u32 w = ((const u32*)(at + TS * 256))[i];
      return {x.x, x.y, low(w), high(w)};
    }
  }

  // Sum the block's warps in order and hand on tile i of dB, dC and dx: to their place if this block has all channels of the
  // group, else to mixing [group][block][group of units][tile][SPW][TS][2 NT + LOW], which a last kernel adds up.
  DI static void gather(const Args& a, const char* block_shared, int i, int units, int group, int block) {
    constexpr int FOURS = (2 * NT + LOW) / 4, COUNT = TS * SPW * FOURS;
    const Size& z = a.size;
    const int unit_groups = ((int)z.units + SPW - 1) / SPW;
    float* to = a.mixing + ((((i64)group * (int)z.blocks + block) * unit_groups + units) * (int)z.tiles + i) * (4 * COUNT);
    UNROLL for (int j = 0; j < (COUNT + NW * 32 - 1) / (NW * 32); j++) {
      const int e = threadIdx.x + j * NW * 32;
      if (COUNT % (NW * 32) != 0 && e >= COUNT) break;
      const int column = e % FOURS * 4, which = RANK && column >= 2 * NT ? 2 : column / NT, n = column - which * NT;
      const int k = e / FOURS % TS, sub = e / FOURS / TS;
      const float* from = (const float*)(block_shared + O_PART) + i % BUFFERS * Partials<CW>::TILE;
      float4 sum = Partials<CW>::four(from, k, sub, which, n);
      UNROLL for (int w = 1; w < NW; w++) {
        const float4 x = Partials<CW>::four(from + w * (WARP_BYTES / 4), k, sub, which, n);
        sum.x += x.x; sum.y += x.y; sum.z += x.z; sum.w += x.w;
      }
#if DIRECT
      const Unit at = unit_of(z, units * SPW + sub);
      if (i * TS + k >= at.left) continue;
      put_sum(a, z, at, at.first + i * TS + k, group, which, n, sum);
#else
      ((float4*)to)[e] = sum;
#endif
    }
  }

  DI static void run(const Args& a, char* block_shared, u32* gate, int units, int group, int block, int d0, int d_end) {
    const Size& z = a.size;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, seat = lane % RW, n0 = lane / RW * NL, sub = seat / CW;
    char* shared = block_shared + warp * WARP_BYTES;
    float* mix = (float*)(shared + O_MIX); T *raw = (T*)(shared + O_RAW), *maps = (T*)(shared + O_MAPS), *x_tile = (T*)(shared + O_LOW);
    const int d = d0 + seat % CW, unit = units * SPW + sub, channels = (int)z.channels, sequence = unit / (int)z.chunks;
    const Unit at = unit_of(z, unit); const bool ok = at.left > 0 && d < d_end; const int tile0 = at.first / TS;
    Tile<CW> tile; tile.init(z, units, d0, d_end, lane);
    MixTile<CW> mixes; mixes.init(a.B, a.C, z, units, group, lane);
    LowTile<CW> low; if (RANK) low.init(x_tile, z, units, lane);
    LowGradients<CW> low_grads; low_grads.init();
    auto fetch_mixes = [&](int i) { mixes.load(raw, RAW_PITCH, a.B, a.C, z, units, group, i * TS, lane); };
    auto fetch = [&](int i) {
      const int p0 = i * TS;
      tile.load(maps, a.u, z, p0); tile.load(maps + DY * TILE, a.dy, z, p0);
      if constexpr (RANK > 0) low.load(x_tile, a.delta, z, p0, lane); else tile.load(maps + TILE, a.delta, z, p0);
      if (HAS_Z) tile.load(maps + (DY + 1) * TILE, a.z, z, p0);
      if (KEEP_Y) tile.load(maps + (DY + 2) * TILE, a.kept, z, p0);
      const char* from = checkpoint(a.saved, z, sequence, tile0 + i, d, n0);
      UNROLL for (int j = 0; j < States::VECTORS; j++) {
        constexpr int V = States::V * 4;
        copy_async<V>(shared + O_CHECK + (j * 32 + lane) * V, from + j * V, d < d_end && p0 < at.left && (tile0 + i > 0 || a.size.resumed));
      }
      if (!LEAN) fetch_mixes(i);
      copies_start();
    };
    const int tiles = (int)z.tiles;
    if (LEAN) fetch_mixes(tiles - 1);
    fetch(tiles - 1);
    Partials<CW> partials; partials.init(lane, gate + 3);
    Channel c; load_channel(c, a.A, a.D, a.bias, d, n0, ok);
    float g[NL], dA[NL], dD = 0.f, dbias = 0.f;
    UNROLL for (int n = 0; n < NL; n++) g[n] = dA[n] = 0.f;
    if (a.last) load_row(g, a.last + ((i64)unit * channels + d) * N, n0, ok);
    if (NT != N) { MixTile<CW>::clear(mix, lane); warp_sync(); }
    // The tile before is summed over the warps as late as the buffers allow, so that no warp waits long for another.
    auto gather_last = [&](int i) {
      if (i + 1 < tiles) { gate_wait(gate, (tiles - 2 - i) & 1); gather(a, block_shared, i + 1, units, group, block); }
    };
    for (int i = tiles - 1; i >= 0; i--) {
      copies_wait(); warp_sync();
      MixTile<CW>::convert(raw, RAW_PITCH, mix, lane);
      if constexpr (RANK > 0) {
        low_grads.take(x_tile, lane);
        LowTile<CW>::project(x_tile, a.weight, d0, d_end, lane, [&](int k, int place, T raw) {
          UNROLL for (int of = place; of < 32; of += RW) raw_step(shared, k, of) = get(raw);
        });
      }
      warp_sync();
      const float* mixing = mix + sub * MixTile<CW>::PITCH + n0;
      const int left = at.left - i * TS;
      if (RANK == 0) close_steps(maps + TILE + seat, left);
      States before, after; float h[NL];
      before.read(shared + O_CHECK + lane * States::V * 4, 32);
      UNROLL for (int n = 0; n < NL; n++) h[n] = before[n];
      #pragma unroll STEPS_AT_ONCE
      for (int k = 0; k < TS; k++) {
        T* cell = maps + k * RW + seat;
        if (k > 0) before.set(h);
        before.write(shared + k * SLOT + lane * States::V * 4, 32);
        const float raw = RANK == 0 ? get(cell[TILE]) : SOFTPLUS && k >= left ? -1e30f : raw_step(shared, k, lane);
        const float x = raw + c.bias, u = get(*cell), dy = get(cell[DY * TILE]);
        float e, dt = step_size(x, e), slope = step_slope(x, e), gy = dy;
        if (!SOFTPLUS && k >= left) dt = slope = 0.f;
        const float y = advance(h, c.a, dt, dt * u, mixing + k * 2 * NT);
        if (HAS_Z) {
          const float gate = get(cell[(DY + 1) * TILE]), s = sigmoid(gate);
          const float all = KEEP_Y ? get(cell[(DY + 2) * TILE]) : fmaf(c.skip, u, over_states(y));
          gy = dy * gate * s;
          if (NS > 1) warp_sync();  // the lanes of a channel have read the gate
          if (NS == 1 || lane < RW) cell[(DY + 1) * TILE] = put(dy * all * (s * fmaf(gate, 1.f - s, 1.f)));
        }
        keep(shared, k, lane, {dt, gy, u, slope});
      }
      after.set(h);
      warp_sync();
      if (HAS_Z) { tile.store(maps + (DY + 1) * TILE, a.dz, z, i * TS, RW); warp_sync(); }
      if (i > 0) fetch(i - 1);
      if (BUFFERS == 2) gather_last(i);

      float* part = (float*)(shared + O_PART) + i % BUFFERS * Partials<CW>::TILE;
      typename Partials<CW>::Held held;  // a step's sums are written while the step before it is under way
      #pragma unroll STEPS_AT_ONCE
      for (int k = TS - 1; k >= 0; k--) {
        const Scalars s = recall(shared, k, lane); const float dtu = s.dt * s.u; const float* bc = mixing + k * 2 * NT;
        before.read(shared + k * SLOT + lane * States::V * 4, 32);
        if (k < TS - 1) partials.write(part + (k + 1) * Partials<CW>::STEP, held, lane);
        float b1 = 0.f, b2 = 0.f, t1 = 0.f, t2 = 0.f, v[NL];
        UNROLL for (int q = 0; q < NL / 4; q++) {
          const float4 B = *(const float4*)(bc + 4 * q), C = *(const float4*)(bc + NT + 4 * q);
          const float bs[4] = {B.x, B.y, B.z, B.w}, cs[4] = {C.x, C.y, C.z, C.w};
          UNROLL for (int j = 0; j < 4; j++) {
            const int n = 4 * q + j;
            const float dh = fmaf(s.gy, cs[j], g[n]);
            if (j & 1) b1 = fmaf(dh, bs[j], b1); else b2 = fmaf(dh, bs[j], b2);
            v[n] = dh;
            g[n] = ex2(s.dt * c.a[n]) * dh;
            const float r = g[n] * before[n];
            if (j & 1) t1 = fmaf(c.a[n], r, t1); else t2 = fmaf(c.a[n], r, t2);
            dA[n] = fmaf(s.dt, r, dA[n]);
          }
        }
#if KIND == 0
        u32 w[2][NL / 2]; const u32 f = pack(dtu, dtu), gy = pack(s.gy, s.gy);
        UNROLL for (int n = 0; n < NL / 2; n++) {
          w[0][n] = mul_pairs(pack(v[2 * n], v[2 * n + 1]), f); w[1][n] = mul_pairs(after.w[n], gy);
        }
        held = partials.add(w[0], w[1], lane);
#else
        float x[NL];
        UNROLL for (int n = 0; n < NL; n++) { v[n] *= dtu; x[n] = after[n] * s.gy; }
        held = partials.add(v, x, lane);
#endif
        after = before;
        const float b = over_states(b1 + b2), t = over_states(t1 + t2), ddt = fmaf(b, s.u, LN2 * t) * s.slope;
        dbias += ddt; dD = fmaf(s.gy, s.u, dD);
        warp_sync();  // everyone has read this step's states: their place takes du and ddelta
        if (LEAN && k == TS - SPW && i > 0) { fetch_mixes(i - 1); copies_start(); }
        if (NS == 1 || lane < RW) {
          T* out = (T*)(shared + k * SLOT) + seat;
          out[0] = put(fmaf(b, s.dt, s.gy * c.skip)); out[RW] = put(ddt);
        }
      }
      partials.write(part, held, lane);
      if (BUFFERS == 3) gather_last(i);
      warp_sync();
      if constexpr (RANK > 0) {
        const T* ddelta = (const T*)shared + RW;
        low_grads.sum_channels(ddelta, SLOT / ES, a.weight + (i64)channels * LowTile<CW>::PITCH, part, d0, z, lane);
        low_grads.sum_steps(ddelta, SLOT / ES, lane);
        warp_sync();
      }
      if (lane == 0) gate_pass(gate);
      tile.store((T*)shared, a.du, z, i * TS, SLOT / ES);
      if (RANK == 0) tile.store((T*)shared + RW, a.ddelta, z, i * TS, SLOT / ES);
    }
    gate_wait(gate, (tiles - 1) & 1); gather(a, block_shared, 0, units, group, block);
    if (a.first && ok && unit % (int)z.chunks == 0) store_row(g, a.first + ((i64)sequence * channels + d) * N, n0);

    UNROLL for (int k = CW; k < RW; k *= 2) {
      UNROLL for (int n = 0; n < NL; n++) dA[n] += from_lane_xor(dA[n], k);
      dD += from_lane_xor(dD, k); dbias += from_lane_xor(dbias, k);
    }
    // A row: dA [channel][N], dD [channel], dbias [channel], dweight [channel][RANK].
    float* row = a.params + (i64)units * channels * (N + 2 + RANK);
    if (RANK) low_grads.store(row + (i64)channels * (N + 2), d0, d_end, lane);
    if (sub == 0 && d < d_end) {
      UNROLL for (int n = 0; n < NL; n++) if (n0 + n < N) row[(i64)d * N + n0 + n] = dA[n];
      if (n0 == 0) { row[(i64)channels * N + d] = dD; row[(i64)channels * (N + 1) + d] = dbias; }
    }
  }
};
static_assert(Backward<LANES>::BYTES == WARP_BYTES, "the host reserves another amount of shared memory");

extern "C" __global__ void __launch_bounds__(NW * 32, MIN_BLOCKS) scan_backward(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) char shared[];
  u32* gate = (u32*)(shared + NW * WARP_BYTES);
  if (threadIdx.x == 0) { gate_init(gate, NW); gate[3] = 0; }
  block_sync();
  const int warps = (int)a.size.blocks, columns = (int)a.size.groups * warps;
  const int units = blockIdx.x / columns, column = blockIdx.x - units * columns, group = column / warps, block = column - group * warps;
  const int d_start = group * (int)a.size.group_channels, d0 = d_start + (block * NW + (int)threadIdx.x / 32) * LANES;
  Backward<LANES>::run(a, shared, gate, units, group, block, d0, d_start + (int)a.size.group_channels);
}
