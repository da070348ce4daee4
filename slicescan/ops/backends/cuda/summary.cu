// What a chunk does to the state that enters it, so that the chunks of a long sequence can run side by side. Forward: the state
// it ends with when it starts from zero. BACK: the gradient that leaves its first step when none enters its last. Both with the
// sum of its step sizes, for the state itself passes by exp(A sum).
struct Args {
  Size size;
  Map u, delta, z;  // BACK: u is the gradient of y
  Mix B, C;
  const float *A, *bias;
  float *ends, *steps;  // [unit][channel][N], [unit][channel]
  const T* weight;
};

template <int CW> struct Summary {
  static constexpr int SPW = RW / CW, TILE = TS * RW, MAPS = 2 + GATED;
  static constexpr int MIX = SPW * MixTile<CW>::PITCH * 4, RAW = SPW * TS * 2 * N * ES, MAP = 2 * MAPS * TILE * ES;
  static constexpr int O_LOW = MIX + (RAW + 15) / 16 * 16, BYTES = O_LOW + LowTile<CW>::TILE * ES + MAP;

  DI static void run(const Args& a, char* shared, int units, int group, int d0, int d_end, int lane) {
    const Size& z = a.size;
    float* mix = (float*)shared; T *raw = (T*)(shared + MIX), *x = (T*)(shared + O_LOW), *maps = (T*)(shared + BYTES - MAP);
    const int seat = lane % RW, n0 = lane / RW * NL, sub = seat / CW, d = d0 + seat % CW, unit = units * SPW + sub;
    const Unit at = unit_of(z, unit); const bool ok = at.left > 0 && d < d_end;
    Tile<CW> tile; tile.init(z, units, d0, d_end, lane);
    MixTile<CW> mixes; mixes.init(a.B, a.C, z, units, group, lane);
    LowTile<CW> low; if (RANK) low.init(x, z, units, lane);
    auto fetch = [&](int i) {
      T* to = maps + (i & 1) * MAPS * TILE;
      tile.load(to, a.u, z, i * TS);
      if constexpr (RANK > 0) low.load(x, a.delta, z, i * TS, lane); else tile.load(to + TILE, a.delta, z, i * TS);
      if (GATED) tile.load(to + 2 * TILE, a.z, z, i * TS);
      mixes.load(raw, MixTile<CW>::RAW, a.B, a.C, z, units, group, i * TS, lane);
      copies_start();
    };
    const int tiles = (int)z.tiles;
    fetch(BACK ? tiles - 1 : 0);
    Channel c; load_channel(c, a.A, nullptr, a.bias, d, n0, ok);
    float h[NL], sum = 0.f;
    UNROLL for (int n = 0; n < NL; n++) h[n] = 0.f;
    if (NT != N) { MixTile<CW>::clear(mix, lane); warp_sync(); }
    for (int j = 0; j < tiles; j++) {
      const int i = BACK ? tiles - 1 - j : j;
      copies_wait(); warp_sync();
      T* now = maps + (i & 1) * MAPS * TILE;
      MixTile<CW>::convert(raw, MixTile<CW>::RAW, mix, lane);
      auto set_step = [&](int k, int place, T raw) { now[TILE + k * RW + place] = raw; };
      if constexpr (RANK > 0) LowTile<CW>::project(x, a.weight, d0, d_end, lane, set_step);
      warp_sync();
      if (j + 1 < tiles) fetch(BACK ? i - 1 : i + 1);
      const int left = at.left - i * TS;
      close_steps(now + TILE + seat, left);
      const float* mixing = mix + sub * MixTile<CW>::PITCH + n0 + (BACK ? NT : 0);
      UNROLL for (int m = 0; m < TS; m++) {
        const int k = BACK ? TS - 1 - m : m;
        const T* cell = now + k * RW + seat;
        float e, dt = step_size(get(cell[TILE]) + c.bias, e), u = get(*cell);
        if (!SOFTPLUS) dt = k < left ? dt : 0.f;
        sum += dt;
        if (GATED) { const float gate = get(cell[(MAPS - 1) * TILE]); u *= gate * sigmoid(gate); }
        if (!BACK) u *= dt;
        UNROLL for (int q = 0; q < NL / 4; q++) {
          const float4 x = *(const float4*)(mixing + k * 2 * NT + 4 * q); const float xs[4] = {x.x, x.y, x.z, x.w};
          UNROLL for (int r = 0; r < 4; r++) {
            const int n = 4 * q + r; const float decay = ex2(dt * c.a[n]);
            h[n] = BACK ? decay * fmaf(u, xs[r], h[n]) : fmaf(decay, h[n], u * xs[r]);
          }
        }
      }
      warp_sync();
    }
    if (!ok) return;
    store_row(h, a.ends + ((i64)unit * (int)z.channels + d) * N, n0);
    if (n0 == 0) a.steps[(i64)unit * (int)z.channels + d] = sum;
  }
};
static_assert(Summary<LANES>::BYTES == WARP_BYTES, "the host reserves another amount of shared memory");

extern "C" __global__ void __launch_bounds__(NW * 32, MIN_BLOCKS) scan_summary(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, columns = (int)(a.size.groups * a.size.blocks);
  const i64 job = (i64)blockIdx.x * NW + warp; const int units = (int)(job / columns), column = (int)(job - (i64)units * columns);
  if ((i64)units * Summary<LANES>::SPW >= a.size.units) return;
  const int group = column / (int)a.size.blocks, d_start = group * (int)a.size.group_channels;
  const int d0 = d_start + (column - group * (int)a.size.blocks) * LANES;
  Summary<LANES>::run(a, shared + warp * WARP_BYTES, units, group, d0, d_start + (int)a.size.group_channels, lane);
}
