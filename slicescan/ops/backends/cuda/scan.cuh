// The mapping shared by both passes. One lane = one channel of one sequence and NL of its states; one warp = CW channels of
// SPW neighbouring sequences; time goes in tiles of TS steps that pass through shared memory, one tile ahead.
//
// Set by the host: KIND (0 bfloat16, 1 float16, 2 float32), N states, NL states a lane, NS lanes that share a channel's states,
// TS steps a tile, NW warps a block, GU and GB bytes a copy of the maps and of B, C, WIDE 64-bit offsets, CARRY, HAS_Z, SOFTPLUS,
// RANK of the steps (0: they come as they are) and GR bytes a copy of their low-rank form.
constexpr int NT = NL * NS, RW = 32 / NS;

// Mixing vectors B, C (batch, slice, step, group, state); strides in elements.
struct Mix { char* at; i64 b, s, t, g, n; };
// `units` = sequences x chunks; a chunk is `tiles` tiles of a sequence of `length` steps; `resumed`: from an initial state.
struct Size { i64 units, chunks, tiles, all_tiles, slices, length, slice_length, channels, group_channels, groups, blocks, resumed; };

// A chunk: its image, slice and first step, and the steps it has from there to the sequence's end (0: there is no such unit).
struct Unit { int b, s, first, left; };
DI Unit unit_of(const Size& z, int unit) {
  const int chunks = (int)z.chunks, slices = (int)z.slices, seq = chunks == 1 ? unit : unit / chunks;
  const int b = slices == 1 ? seq : seq / slices, first = (unit - seq * chunks) * (int)z.tiles * TS;
  return {b, seq - b * slices, first, unit < (int)z.units ? (int)z.length - first : 0};
}
template <class M> DI idx place(const M& m, const Size& z, int b, int s, int p) {  // where step p of a sequence lies
#if CARRY
  s = p / (int)z.slice_length; p -= s * (int)z.slice_length;
#endif
  return (idx)b * (idx)m.b + (idx)s * (idx)m.s + (idx)p * (idx)m.t;
}

// Moves tiles [TS][RW] of a map between global and shared memory, GU bytes at a time.
template <int CW> struct Tile {
  static constexpr int SPW = RW / CW, EPC = GU / ES, CPR = RW / EPC, ROWS = 32 / CPR, PASSES = ROWS >= TS ? 1 : TS / ROWS;
  int row, column, d;
  Unit at;
  DI void init(const Size& z, int group_of_units, int d0, int d_end, int lane) {
    row = lane / CPR; column = lane % CPR * EPC; d = d0 + column % CW;
    at = unit_of(z, group_of_units * SPW + column / CW);
    if (d >= d_end || row >= TS) at.left = 0;
  }
  DI idx offset(const Map& m, const Size& z, int p) const {
    return place(m, z, at.b, at.s, at.first + p) + (idx)d * (GU == ES ? (idx)m.d : 1);
  }
  DI void load(T* tile, const Map& m, const Size& z, int p0) const {
    UNROLL for (int j = 0; j < PASSES; j++) {
      const int r = row + j * ROWS;
      if (ROWS <= TS || row < TS)
        copy_async<GU>(tile + r * RW + column, (T*)m.at + offset(m, z, p0 + r), p0 + r < at.left);
    }
  }
  DI void store(const T* tile, const Map& m, const Size& z, int p0, int pitch) const {
    UNROLL for (int j = 0; j < PASSES; j++) {
      const int r = row + j * ROWS;
      if (p0 + r >= at.left) continue;
      const T* from = tile + r * pitch + column; T* to = (T*)m.at + offset(m, z, p0 + r);
      if constexpr (GU == 16) *(uint4*)to = *(const uint4*)from;
      else if constexpr (GU == 8) *(uint2*)to = *(const uint2*)from;
      else if constexpr (GU == 4) *(u32*)to = *(const u32*)from;
      else *to = *from;
    }
  }
};

// Brings tiles of B and C, as they are, into raw [SPW][TS][2][N], with `pitch` elements from sequence to sequence, and from
// there as floats into mix [SPW][TS][2][NT].
template <int CW> struct MixTile {
  static constexpr int SPW = RW / CW, EPC = GB / ES, CPV = N / EPC, CPS = 2 * CPV, COUNT = TS * CPS;
  static constexpr int PITCH = TS * 2 * NT + (SPW > 1 ? 4 : 0), RAW = TS * 2 * N, V = N % 4 == 0 ? 4 : 1;
  static constexpr bool FIXED = 32 % CPS == 0 && !CARRY;  // a lane always copies the same part of a step's vectors
  const T* from;
  idx step, start[SPW];
  int left[SPW];
  DI static idx offset(const Mix& m, const Size& z, const Unit& at, int group, int p, int part) {
    return place(m, z, at.b, at.s, at.first + p) + (idx)group * (idx)m.g + part * EPC * (GB == ES ? (idx)m.n : 1);
  }
  DI void init(const Mix& B, const Mix& C, const Size& z, int group_of_units, int group, int lane) {
    if constexpr (FIXED) {
      const bool is_c = lane / CPV % 2; const int r = lane / CPS, part = lane % CPV;
      from = (const T*)(is_c ? C.at : B.at); step = is_c ? (idx)C.t : (idx)B.t;
      UNROLL for (int sub = 0; sub < SPW; sub++) {
        const Unit at = unit_of(z, group_of_units * SPW + sub);
        start[sub] = is_c ? offset(C, z, at, group, r, part) : offset(B, z, at, group, r, part);
        left[sub] = at.left - r;
      }
    }
  }
  DI void load(
      T* raw, int pitch, const Mix& B, const Mix& C, const Size& z, int group_of_units, int group, int p0, int lane) const {
    UNROLL for (int sub = 0; sub < SPW; sub++) {
      if constexpr (FIXED) {
        constexpr int ROWS = 32 / CPS;
        UNROLL for (int j = 0; j < (COUNT + 31) / 32; j++) {
          const int p = p0 + j * ROWS;
          if (COUNT % 32 == 0 || lane + j * 32 < COUNT)
            copy_async<GB>(raw + sub * pitch + (lane + j * 32) * EPC, from + start[sub] + (idx)p * step, p < left[sub]);
        }
      } else {
        const Unit at = unit_of(z, group_of_units * SPW + sub);
        for (int i = lane; i < COUNT; i += 32) {
          const int part = i % CPV, p = p0 + i / CPS; const bool is_c = i / CPV % 2;
          const T* where = is_c ? (const T*)C.at + offset(C, z, at, group, p, part) : (const T*)B.at + offset(B, z, at, group, p, part);
          copy_async<GB>(raw + sub * pitch + i * EPC, where, p < at.left);
        }
      }
    }
  }
  DI static void clear(float* mix, int lane) {
    for (int i = lane; i < SPW * PITCH; i += 32) mix[i] = 0.f;
  }
  DI static void convert(const T* raw, int pitch, float* mix, int lane) {
    UNROLL for (int sub = 0; sub < SPW; sub++) {
      UNROLL for (int i = lane; i < TS * 2 * N / V; i += 32) {
        const int row = i * V / N, n = i * V % N; const T* from = raw + sub * pitch + i * V;
        float* to = mix + sub * PITCH + row * NT + n;
        if constexpr (V == 1) *to = get(*from);
        else if constexpr (ES == 4) *(float4*)to = *(const float4*)from;
        else {
          const uint2 w = *(const uint2*)from;
          *(float4*)to = make_float4(get((T)w.x), get((T)(w.x >> 16)), get((T)w.y), get((T)(w.y >> 16)));
        }
      }
    }
  }
};

// Products of the tensor cores. A lane brings K / 4 neighbouring summands of rows lane / 4 and 8 below of a (16 x K), and of column
// lane / 4 of b (K x 8); it owns columns lane % 4 * 2 and the next of those two rows of the sum c.
DI float coarse(float x) { return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u); }  // 11 bits, as tf32 has
DI void multiply(float* c, const float (&a)[4], const float (&b)[2]) {  // K = 8
#if KIND == 2  // the upper parts, and each with what the other leaves
  float upper_a[4], rest_a[4], upper_b[2], rest_b[2];
  UNROLL for (int i = 0; i < 4; i++) { upper_a[i] = coarse(a[i]); rest_a[i] = a[i] - upper_a[i]; }
  UNROLL for (int i = 0; i < 2; i++) { upper_b[i] = coarse(b[i]); rest_b[i] = b[i] - upper_b[i]; }
  auto one = [&](const float* x, const float* y) {
    mma_tf32(c, __float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]), y[0], y[1]);
  };
  one(rest_a, upper_b); one(upper_a, rest_b); one(upper_a, upper_b);
#else
  mma_tf32(c, __float_as_uint(a[0]), __float_as_uint(a[1]), __float_as_uint(a[2]), __float_as_uint(a[3]), b[0], b[1]);
#endif
}
// Of b only the first `some` summands are there.
template <int K> DI void multiply(float* c, const T* a, const T* a8, const T* b, int some) {
  if constexpr (K == 16) {
    const uint2 x = *(const uint2*)a, x8 = *(const uint2*)a8, y = *(const uint2*)b;
    mma_bfloat16(c, x.x, x8.x, x.y, x8.y, some > 0 ? y.x : 0u, some > 2 ? y.y : 0u);
  } else multiply(c, {get(a[0]), get(a8[0]), get(a[1]), get(a8[1])}, {some > 0 ? get(b[0]) : 0.f, some > 1 ? get(b[1]) : 0.f});
}

// Steps of low rank. A tile brings x [SPW][TS][LOW], RANK numbers a step and zeros behind; delta_weight is [channel][PITCH].
constexpr int K_LOW = KIND == 0 ? 16 : 8, LOW = (RANK + 3) / 4 * 4;
template <int CW> struct LowTile {
  static constexpr int SPW = RW / CW, PITCH = (RANK + K_LOW - 1) / K_LOW * K_LOW, TILE = SPW * TS * LOW;
  static constexpr int EPC = GR / ES, CPR = RANK / EPC;
  Unit at[SPW];
  DI void init(T* x, const Size& z, int group_of_units, int lane) {
    UNROLL for (int sub = 0; sub < SPW; sub++) at[sub] = unit_of(z, group_of_units * SPW + sub);
    for (int i = lane; i < TILE; i += 32) x[i] = 0;
    warp_sync();
  }
  DI void load(T* x, const Map& m, const Size& z, int p0, int lane) const {
    UNROLL for (int sub = 0; sub < SPW; sub++) {
      const Unit& u = at[sub];
      for (int i = lane; i < TS * CPR; i += 32) {
        const int p = p0 + i / CPR, part = i % CPR * EPC;
        const T* from = (const T*)m.at + place(m, z, u.b, u.s, u.first + p) + (idx)part * (GR == ES ? (idx)m.d : 1);
        copy_async<GR>(x + (sub * TS + i / CPR) * LOW + part, from, p < u.left);
      }
    }
  }
  // The raw steps of the warp's channels, as write(step, seat, value). A product's columns 2q and 2q + 1 are the steps q and q + 4:
  // what lanes write at once lies in different banks.
  template <class Write> DI static void project(const T* x, const T* weight, int d0, int d_end, int lane, Write write) {
    static_assert(TS == 8 || RANK == 0, "a product has 8 columns");
    constexpr int ROWS = CW < 16 ? CW : 16;
    const int r = lane / 4, q = lane % 4, part = q * K_LOW / 4;
    UNROLL for (int m = 0; m < RW; m += ROWS) {
      const int d = d0 + m % CW + r, last = d_end - 1;  // channels that do not exist take any finite steps
      const T *w = weight + (i64)(d < last ? d : last) * PITCH + part, *w8 = weight + (i64)(d + 8 < last ? d + 8 : last) * PITCH + part;
      const T* column = x + (m / CW * TS + r / 2 + r % 2 * 4) * LOW + part;
      float c[4] = {0.f, 0.f, 0.f, 0.f};
      UNROLL for (int k = 0; k < PITCH; k += K_LOW) multiply<K_LOW>(c, w + k, w8 + k, column + k, LOW - k - part);
      write(q, m + r, put(c[0])); write(q + 4, m + r, put(c[1]));
      if (ROWS == 16) { write(q, m + r + 8, put(c[2])); write(q + 4, m + r + 8, put(c[3])); }
    }
  }
};

// Step size from its raw value; `e` keeps exp(x) for the derivative. Small arguments take the series of log(1 + e).
DI float step_size(float x, float& e) {
#if SOFTPLUS
  e = ex2(x * LOG2E);
#if KIND == 2
  const float edge = 0.125f, t = e * (1.f / 6.f);
  const float series = e * fmaf(e, fmaf(e, fmaf(e, fmaf(e, 0.2f - t, -0.25f), 0.33333333f), -0.5f), 1.f);
#else
  const float edge = 0.03125f, series = e * fmaf(e, fmaf(e, 0.33333333f, -0.5f), 1.f);
#endif
  const float l = e < edge ? series : lg2(1.f + e) * LN2;
  return x > 20.f ? x : l;
#else
  return x;
#endif
}
DI float step_slope(float x, float e) {
#if SOFTPLUS
  return x > 20.f ? 1.f : e * rcp(1.f + e);
#else
  return 1.f;
#endif
}
DI float slope_of(float dt) {  // the derivative of softplus from its value
#if SOFTPLUS
  return dt < 0.015625f ? dt * fmaf(dt, -0.5f, 1.f) : 1.f - ex2(-dt * LOG2E);
#else
  return 1.f;
#endif
}

// One step of the recurrence, h = exp(dt A) h + dt u B, and its read-out h C.
DI float advance(float* h, const float* a, float dt, float dtu, const float* mix) {
  float y0 = 0.f, y1 = 0.f;
  UNROLL for (int q = 0; q < NL / 4; q++) {
    const float4 b = *(const float4*)(mix + 4 * q), c = *(const float4*)(mix + NT + 4 * q);
    const float bs[4] = {b.x, b.y, b.z, b.w}, cs[4] = {c.x, c.y, c.z, c.w};
    UNROLL for (int j = 0; j < 4; j++) {
      const int n = 4 * q + j;
      h[n] = fmaf(ex2(dt * a[n]), h[n], dtu * bs[j]);
      if (j & 1) y1 = fmaf(h[n], cs[j], y1); else y0 = fmaf(h[n], cs[j], y0);
    }
  }
  return y0 + y1;
}
DI float over_states(float x) {  // the sum over the lanes that share a channel
  UNROLL for (int k = RW; k < 32; k *= 2) x += from_lane_xor(x, k);
  return x;
}

// NL floats of a row of N, from n0 on; zero beyond the row's end and where the lane has no row.
DI void load_row(float* v, const float* row, int n0, bool ok) {
  if constexpr (N % 4 == 0) {
    UNROLL for (int n = 0; n < NL; n += 4) {
      const float4 x = ok && n0 + n < N ? *(const float4*)(row + n0 + n) : make_float4(0.f, 0.f, 0.f, 0.f);
      v[n] = x.x; v[n + 1] = x.y; v[n + 2] = x.z; v[n + 3] = x.w;
    }
  } else UNROLL for (int n = 0; n < NL; n++) v[n] = ok && n0 + n < N ? row[n0 + n] : 0.f;
}
DI void store_row(const float* v, float* row, int n0) {
  if constexpr (N % 4 == 0) {
    UNROLL for (int n = 0; n < NL; n += 4)
      if (n0 + n < N) *(float4*)(row + n0 + n) = make_float4(v[n], v[n + 1], v[n + 2], v[n + 3]);
  } else UNROLL for (int n = 0; n < NL; n++) if (n0 + n < N) row[n0 + n] = v[n];
}
// Four values of dB or dC from state n on.
DI void put_four(T* to, int n, float4 x) {
  const float all[4] = {x.x, x.y, x.z, x.w};
  if constexpr (N % 4 == 0 && NT == N && ES == 4) *(float4*)to = x;
  else if constexpr (N % 4 == 0 && NT == N && KIND == 0) *(uint2*)to = make_uint2(pack(x.x, x.y), pack(x.z, x.w));
  else UNROLL for (int q = 0; q < 4; q++) if (n + q < N) to[q] = put(all[q]);
}
// Four sums over channels of step p, from column n on: of dB (which = 0), dC (1) or dx, the gradient of a step of low rank (2).
template <class Args> DI void put_sum(const Args& a, const Size& z, const Unit& at, int p, int group, int which, int n, float4 sum) {
  if (RANK && which == 2) {
    T* to = (T*)a.ddelta.at + place(a.ddelta, z, at.b, at.s, p); const float all[4] = {sum.x, sum.y, sum.z, sum.w};
    UNROLL for (int q = 0; q < 4; q++) if (n + q < RANK) to[(idx)(n + q) * (idx)a.ddelta.d] = put(all[q]);
  } else {
    const Mix& m = which ? a.dC : a.dB;
    put_four((T*)m.at + place(m, z, at.b, at.s, p) + (idx)group * (idx)m.g + n, n, sum);
  }
}
// A channel's constants.
struct Channel { float a[NL], skip, bias; };
DI void load_channel(Channel& c, const float* A, const float* D, const float* bias, int d, int n0, bool ok) {
  load_row(c.a, A + (i64)d * N, n0, ok);
  UNROLL for (int n = 0; n < NL; n++) c.a[n] *= LOG2E;
  c.skip = ok && D ? D[d] : 0.f;
  c.bias = ok && bias ? bias[d] : 0.f;
}
// Steps beyond the end of a sequence must leave the state alone: their raw step size becomes one whose softplus is 0.
DI void close_steps(T* raw_steps, int left) {
#if SOFTPLUS
  if (left < TS) {
    _Pragma("unroll 1") for (int k = left < 0 ? 0 : left; k < TS; k++) raw_steps[k * RW] = put(-1e30f);
  }
#endif
}

// A lane's NL states as they are stored between the passes: bfloat16 pairs for bfloat16 maps, float32 otherwise.
struct States {
#if KIND == 0
  static constexpr int WORDS = NL / 2;
#else
  static constexpr int WORDS = NL;
#endif
  static constexpr int V = WORDS % 4 == 0 ? 4 : 2;  // words a vector
  static constexpr int VECTORS = WORDS / V, BYTES = WORDS * 4;
  u32 w[WORDS];
  DI void set(const float* h) {
#if KIND == 0
    UNROLL for (int n = 0; n < WORDS; n++) w[n] = pack(h[2 * n], h[2 * n + 1]);
#else
    UNROLL for (int n = 0; n < WORDS; n++) w[n] = __float_as_uint(h[n]);
#endif
  }
  DI float operator[](int n) const {
#if KIND == 0
    return n & 1 ? high(w[n / 2]) : low(w[n / 2]);
#else
    return __uint_as_float(w[n]);
#endif
  }
  DI void write(void* to, int pitch) const {  // vector j at to + j * pitch vectors
    UNROLL for (int j = 0; j < VECTORS; j++) {
      if constexpr (V == 4) ((uint4*)to)[j * pitch] = make_uint4(w[4 * j], w[4 * j + 1], w[4 * j + 2], w[4 * j + 3]);
      else ((uint2*)to)[j * pitch] = make_uint2(w[2 * j], w[2 * j + 1]);
    }
  }
  DI void read(const void* from, int pitch) {
    UNROLL for (int j = 0; j < VECTORS; j++) {
      if constexpr (V == 4) {
        const uint4 v = ((const uint4*)from)[j * pitch];
        w[4 * j] = v.x; w[4 * j + 1] = v.y; w[4 * j + 2] = v.z; w[4 * j + 3] = v.w;
      } else {
        const uint2 v = ((const uint2*)from)[j * pitch];
        w[2 * j] = v.x; w[2 * j + 1] = v.y;
      }
    }
  }
};
// Checkpoints: the state before each tile, [sequence][tile][channel][NT].
DI char* checkpoint(char* saved, const Size& z, i64 sequence, int tile, int d, int n0) {
  return saved + (((sequence * z.all_tiles + tile) * z.channels + d) * NT + n0) * (States::BYTES / NL);
}
