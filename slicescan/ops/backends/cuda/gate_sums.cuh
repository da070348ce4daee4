// Runs a Walk, which the file before has, over pieces and sums what it adds up. A thread's channels are the same in all of its
// pieces, and the order of the sums is fixed.
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) gate_sums(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) char shared[];
  constexpr int HIGH_LINES = THREADS / ACROSS;
  constexpr int VECTORS = CHANNELS / V;
  const int column = threadIdx.x % ACROSS, line = threadIdx.x / ACROSS, rows = (int)a.rows;
  const int vector = (int)(blockIdx.x / rows) * ACROSS + column, row = (int)(blockIdx.x % rows), d = vector * V;
  Sums dw = {};
  if (vector < VECTORS && line < HIGH_LINES) {
    Taps c; load_taps(c, a, d);
    #pragma unroll 1
    for (i64 item = (i64)row * HIGH_LINES + line; item < items_of(a); item += (i64)rows * HIGH_LINES) {
      const Item at = item_of(a, item);
      if (within(a, at)) { Walk<false> walk(a, c, at, d, dw); over_columns<false>(walk); }
      else { Walk<true> walk(a, c, at, d, dw); over_columns<true>(walk); }
    }
  }
  constexpr int EACH = HALVES * TAPS * V;
  float* sums = (float*)shared;  // [THREADS][EACH]
  UNROLL for (int h = 0; h < HALVES; h++) UNROLL for (int t = 0; t < TAPS; t++) UNROLL for (int v = 0; v < V; v++)
    sums[threadIdx.x * EACH + (h * TAPS + t) * V + v] = dw.of[h][t][v];
  block_sync();
  for (int i = threadIdx.x; i < ACROSS * EACH; i += THREADS) {
    const int v = i % V, t = i / V % TAPS, h = i / V / TAPS % HALVES, who = i / EACH;
    const int channel = ((int)(blockIdx.x / rows) * ACROSS + who) * V + v;
    float sum = 0.f;
    for (int l = 0; l < HIGH_LINES; l++) sum += sums[(l * ACROSS + who) * EACH + (h * TAPS + t) * V + v];
    if (channel < CHANNELS)
      a.sums[((i64)row * HALVES * CHANNELS + h * CHANNELS + channel) * TAPS + t] = sum;
  }
}
