// Sums of three columns of results are under way: a column read is the last of one, the middle of one, the first of one.
template <bool EDGE> struct Walk : Strip<EDGE> {
  const Taps& c;
  Rows y;
  float sum[3][TALL][HALVES][V];
  DI Walk(const Args& a, const Taps& c, const Item& at, int d)
      : Strip<EDGE>(a, at, d), c(c), y(rows_of(a.y, YT, at.b, at.row, at.column - 2, d)) {
    UNROLL for (int r = 0; r < TALL; r++) UNROLL for (int h = 0; h < HALVES; h++)
      UNROLL for (int v = 0; v < V; v++) sum[0][r][h][v] = sum[1][r][h][v] = 0.f;
  }
  DI void advance() { this->x.at += 3 * XT * ES; y.at += 3 * YT * ES; }
  template <int P> DI void step(int k) {
    float x[HALVES][HIGH][V];
    UNROLL for (int h = 0; h < HALVES; h++) UNROLL for (int q = 0; q < HIGH; q++) unpack(this->raw[P % AHEAD][h][q], x[h][q]);
    this->take(k + AHEAD, P + AHEAD);
    UNROLL for (int h = 0; h < HALVES; h++) UNROLL for (int r = 0; r < TALL; r++) UNROLL for (int v = 0; v < V; v++) {
      sum[(P + 2) % 3][r][h][v] = c.bias[h][v];
      UNROLL for (int j = 0; j < 3; j++) UNROLL for (int q = 0; q < 3; q++)
        sum[(P + j) % 3][r][h][v] = fmaf(c.w[h][q * 3 + 2 - j][v], x[h][r + q][v], sum[(P + j) % 3][r][h][v]);
    }
    if (k < 2) return;
    UNROLL for (int r = 0; r < TALL; r++) {
      float to[V];
      UNROLL for (int v = 0; v < V; v++) to[v] = GATE ? act(sum[P][r][0][v]) * sum[P][r][HALVES - 1][v] : sum[P][r][0][v];
      if (this->has(r)) store(to, y.row(r, P * YT));
    }
  }
};
extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) gate_forward(const __grid_constant__ Args a) {
  constexpr int VECTORS = CHANNELS / V;
  const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x, item = i / VECTORS; const int d = (int)(i - item * VECTORS) * V;
  if (item >= items_of(a)) return;
  const Item at = item_of(a, item); Taps c; load_taps(c, a, d);
  if (within(a, at)) { Walk<false> walk(a, c, at, d); over_columns<false>(walk); }
  else { Walk<true> walk(a, c, at, d); over_columns<true>(walk); }
}
