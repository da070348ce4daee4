// Forward pass: y, and on request the checkpoints and the last state. Every warp works alone.
struct Args {
  Size size;
  Map u, delta, z, y, kept;  // kept: y before its gate, for the backward pass
  Mix B, C;
  const float *A, *D, *bias, *first;
  float* last;
  char* saved;
  const T* weight;
};

template <int CW> struct Forward {
  static constexpr int SPW = RW / CW, TILE = TS * RW, MAPS = HAS_Z ? 3 : 2;
  static constexpr int MIX = SPW * MixTile<CW>::PITCH * 4, RAW = SPW * TS * 2 * N * ES, MAP = 2 * MAPS * TILE * ES;
  static constexpr int O_LOW = MIX + (RAW + 15) / 16 * 16, BYTES = O_LOW + LowTile<CW>::TILE * ES + MAP;

  DI static void run(const Args& a, char* shared, int units, int group, int d0, int d_end, int lane) {
    const Size& z = a.size;
    float* mix = (float*)shared; T *raw = (T*)(shared + MIX), *x = (T*)(shared + O_LOW), *maps = (T*)(shared + BYTES - MAP);
    const int seat = lane % RW, n0 = lane / RW * NL, sub = seat / CW, d = d0 + seat % CW, unit = units * SPW + sub;
    const Unit at = unit_of(z, unit); const bool ok = at.left > 0 && d < d_end;
    const int channels = (int)z.channels, sequence = unit / (int)z.chunks, tile0 = at.first / TS;
    Tile<CW> tile; tile.init(z, units, d0, d_end, lane);
    MixTile<CW> mixes; mixes.init(a.B, a.C, z, units, group, lane);
    LowTile<CW> low; if (RANK) low.init(x, z, units, lane);
    auto fetch = [&](int i) {
      T* to = maps + (i & 1) * MAPS * TILE;
      tile.load(to, a.u, z, i * TS);
      if constexpr (RANK > 0) low.load(x, a.delta, z, i * TS, lane); else tile.load(to + TILE, a.delta, z, i * TS);
      if (HAS_Z) tile.load(to + 2 * TILE, a.z, z, i * TS);
      mixes.load(raw, MixTile<CW>::RAW, a.B, a.C, z, units, group, i * TS, lane);
      copies_start();
    };
    fetch(0);
    Channel c; load_channel(c, a.A, a.D, a.bias, d, n0, ok);
    float h[NL];
    UNROLL for (int n = 0; n < NL; n++) h[n] = 0.f;
    if (a.first) load_row(h, a.first + ((i64)unit * channels + d) * N, n0, ok);
    if (NT != N) { MixTile<CW>::clear(mix, lane); warp_sync(); }
    const int tiles = (int)z.tiles;
    for (int i = 0; i < tiles; i++) {
      copies_wait(); warp_sync();
      T* now = maps + (i & 1) * MAPS * TILE;
      MixTile<CW>::convert(raw, MixTile<CW>::RAW, mix, lane);
      auto set_step = [&](int k, int place, T raw) { now[TILE + k * RW + place] = raw; };
      if constexpr (RANK > 0) LowTile<CW>::project(x, a.weight, d0, d_end, lane, set_step);
      warp_sync();
      if (i + 1 < tiles) fetch(i + 1);
      const int left = at.left - i * TS;
#if SAVE
      if (ok && left > 0 && (tile0 + i > 0 || a.first)) {
        States s; s.set(h);
        s.write(checkpoint(a.saved, z, sequence, tile0 + i, d, n0), 1);
      }
#endif
      close_steps(now + TILE + seat, left);
      const float* mixing = mix + sub * MixTile<CW>::PITCH + n0;
      UNROLL for (int k = 0; k < TS; k++) {
        T* cell = now + k * RW + seat;
        float e, dt = step_size(get(cell[TILE]) + c.bias, e); const float u = get(*cell);
        if (!SOFTPLUS) dt = k < left ? dt : 0.f;
        float y = fmaf(c.skip, u, over_states(advance(h, c.a, dt, dt * u, mixing + k * 2 * NT)));
        if (HAS_Z) {
          const float gate = get(cell[(MAPS - 1) * TILE]);
          if (SAVE && KEEP_Y && (NS == 1 || lane < RW)) cell[TILE] = put(y);  // in the place of the step size
#if KIND == 0
          y *= fmaf(gate * 0.5f, tanh_fast(gate * 0.5f), gate * 0.5f);
#else
          y *= gate * sigmoid(gate);
#endif
        }
        if (NS == 1 || lane < RW) *cell = put(y);
      }
      warp_sync();
      tile.store(now, a.y, z, i * TS, RW);
      if (SAVE && KEEP_Y) tile.store(now + TILE, a.kept, z, i * TS, RW);
    }
    if (a.last && ok && (unit + 1) % (int)z.chunks == 0) store_row(h, a.last + ((i64)sequence * channels + d) * N, n0);
  }
};
// With TAIL the last channels of a group, too few for a warp's LANES, have warps of their own, of more sequences each.
constexpr int LAST = TAIL ? TAIL : LANES;
static_assert(Forward<LAST>::BYTES == WARP_BYTES, "the host reserves another amount of shared memory");

extern "C" __global__ void __launch_bounds__(NW * 32, MIN_BLOCKS) scan_forward(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, groups = (int)a.size.groups, blocks = (int)a.size.blocks;
  const int together = (int)((a.size.units + Forward<LANES>::SPW - 1) / Forward<LANES>::SPW);
  i64 job = (i64)blockIdx.x * NW + warp; const bool tail = TAIL && job >= (i64)together * groups * blocks;
  if (tail) job -= (i64)together * groups * blocks;
  const int columns = tail ? groups : groups * blocks, units = (int)(job / columns), column = (int)(job - (i64)units * columns);
  const int group = tail ? column : column / blocks, d_start = group * (int)a.size.group_channels;
  const int d0 = d_start + (tail ? blocks : column - group * blocks) * LANES, d_end = d_start + (int)a.size.group_channels;
  if ((i64)units * (tail ? Forward<LAST>::SPW : Forward<LANES>::SPW) >= a.size.units) return;
  if (tail) Forward<LAST>::run(a, shared + warp * WARP_BYTES, units, group, d0, d_end, lane);
  else Forward<LANES>::run(a, shared + warp * WARP_BYTES, units, group, d0, d_end, lane);
}
