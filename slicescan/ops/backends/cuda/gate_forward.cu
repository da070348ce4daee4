// Sums of three columns of results are under way: a column read is the last of one, the middle of one, the first of one.
extern "C" __global__ void __launch_bounds__(256) gate_forward(const __grid_constant__ Args a) {
  const int vectors = (int)a.channels / V;
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x, item = i / vectors; const int d = (int)(i - item * vectors) * V;
  if (item >= items_of(a)) return;
  const Item at = item_of(a, item); Taps c; load_taps(c, a, d);
  float sum[3][TALL][HALVES][V];
  UNROLL for (int j = 0; j < 2; j++) UNROLL for (int r = 0; r < TALL; r++) UNROLL for (int h = 0; h < HALVES; h++)
    UNROLL for (int v = 0; v < V; v++) sum[j + 1][r][h][v] = c.bias[h][v];
  UNROLL for (int k = -1; k <= STRIP; k++) {
    const int column = at.column + k;
    UNROLL for (int r = 0; r < TALL; r++) UNROLL for (int h = 0; h < HALVES; h++) UNROLL for (int v = 0; v < V; v++) {
      sum[0][r][h][v] = sum[1][r][h][v]; sum[1][r][h][v] = sum[2][r][h][v]; sum[2][r][h][v] = c.bias[h][v];
    }
    UNROLL for (int q = 0; q < TALL + 2; q++) UNROLL for (int h = 0; h < HALVES; h++) {
      float x[V];
      load(x, a, a.x, at.b, at.row + q - 1, column, d + h * (int)a.channels);
      UNROLL for (int r = 0; r < TALL; r++) if (q - r >= 0 && q - r < 3) UNROLL for (int j = 0; j < 3; j++)
        UNROLL for (int v = 0; v < V; v++) sum[j][r][h][v] = fmaf(c.w[h][(q - r) * 3 + 2 - j][v], x[v], sum[j][r][h][v]);
    }
    if (k < 1 || column - 1 >= (int)a.width) continue;
    UNROLL for (int r = 0; r < TALL; r++) if (at.row + r < (int)a.height) {
      float y[V];
      UNROLL for (int v = 0; v < V; v++) y[v] = GATE ? act(sum[0][r][0][v]) * sum[0][r][HALVES - 1][v] : sum[0][r][0][v];
      store(y, a.y, at.b, at.row + r, column - 1, d);
    }
  }
}
