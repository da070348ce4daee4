// Gradients of weight and bias, and with GATE that of the convolution's result, which gate_forward without GATE and with
// turned taps then spreads over x. A thread's channels are the same in all its pieces, which have one row.
extern "C" __global__ void __launch_bounds__(128) gate_gradient(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) char shared[];
  const int vectors = (int)a.channels / V, across = vectors < 32 ? vectors : 32, high = 128 / across;
  const int column = threadIdx.x % across, line = threadIdx.x / across, rows = (int)a.rows;
  const int vector = (int)(blockIdx.x / rows) * across + column, row = (int)(blockIdx.x % rows), d = vector * V;
  float dw[HALVES][10][V] = {};  // the last is dbias
  if (vector < vectors && line < high) {
    Taps c; load_taps(c, a, d);
    for (i64 item = (i64)row * high + line; item < items_of(a); item += (i64)rows * high) {
      const Item at = item_of(a, item);
      float x[HALVES][9][V];
      UNROLL for (int h = 0; h < HALVES; h++) UNROLL for (int q = 0; q < 3; q++) UNROLL for (int j = 0; j < 2; j++)
        load(x[h][q * 3 + j + 1], a, a.x, at.b, at.row + q - 1, at.column + j - 1, d + h * (int)a.channels);
      UNROLL for (int k = 0; k < STRIP; k++) {
        const int place = at.column + k;
        UNROLL for (int h = 0; h < HALVES; h++) UNROLL for (int q = 0; q < 3; q++) {
          UNROLL for (int j = 0; j < 2; j++) UNROLL for (int v = 0; v < V; v++) x[h][q * 3 + j][v] = x[h][q * 3 + j + 1][v];
          load(x[h][q * 3 + 2], a, a.x, at.b, at.row + q - 1, place + 1, d + h * (int)a.channels);
        }
        float g[HALVES][V];
        load(g[0], a, a.y, at.b, at.row, place, d);  // zero behind the last column
        if (GATE) {
          UNROLL for (int v = 0; v < V; v++) {
            float y[2] = {c.bias[0][v], c.bias[HALVES - 1][v]};
            UNROLL for (int h = 0; h < 2; h++) UNROLL for (int t = 0; t < 9; t++)
              y[h] = fmaf(c.w[h % HALVES][t][v], x[h % HALVES][t][v], y[h]);
            g[HALVES - 1][v] = g[0][v] * act(y[0]);
            g[0][v] *= y[1] * slope(y[0]);
          }
          if (place < (int)a.width) UNROLL for (int h = 0; h < HALVES; h++)
            store(g[h], a.g, at.b, at.row, place, d + h * (int)a.channels);
        }
        UNROLL for (int h = 0; h < HALVES; h++) UNROLL for (int v = 0; v < V; v++) {
          UNROLL for (int t = 0; t < 9; t++) dw[h][t][v] = fmaf(g[h][v], x[h][t][v], dw[h][t][v]);
          dw[h][9][v] += g[h][v];
        }
      }
    }
  }
  constexpr int EACH = HALVES * 10 * V;
  float* sums = (float*)shared;  // [128][EACH]
  UNROLL for (int h = 0; h < HALVES; h++) UNROLL for (int t = 0; t < 10; t++) UNROLL for (int v = 0; v < V; v++)
    sums[threadIdx.x * EACH + (h * 10 + t) * V + v] = dw[h][t][v];
  block_sync();
  for (int i = threadIdx.x; i < across * EACH; i += 128) {
    const int v = i % V, t = i / V % 10, h = i / V / 10 % HALVES, who = i / EACH;
    const int channel = ((int)(blockIdx.x / rows) * across + who) * V + v;
    float sum = 0.f;
    for (int l = 0; l < high; l++) sum += sums[(l * across + who) * EACH + (h * 10 + t) * V + v];
    if (channel < (int)a.channels)
      a.sums[((i64)row * HALVES * a.channels + h * a.channels + channel) * 10 + t] = sum;
  }
}
