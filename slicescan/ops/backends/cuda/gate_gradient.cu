// Behind a gate: the gradient of the convolution's result, and of weight and bias. gate_forward with turned taps then spreads
// the first over x.
template <bool EDGE> struct Walk : Strip<EDGE> {
  const Taps& c; Sums& dw;
  Rows y, g, made;
  float x[3][HALVES][HIGH][V];
  Raw grad[TALL];
  DI Walk(const Args& a, const Taps& c, const Item& at, int d, Sums& dw)
      : Strip<EDGE>(a, at, d), c(c), dw(dw), y(rows_of(a.y, YT, at.b, at.row, at.column - 1, d)),
        g(rows_of(a.g, GT, at.b, at.row, at.column - 2, d)), made(rows_of(a.made, MT, at.b, at.row, at.column - 2, d)) {}
  DI void advance() {
    this->Strip<EDGE>::x.at += 3 * XT * ES; y.at += 3 * YT * ES; g.at += 3 * GT * ES;
    made.at += 3 * MT * ES;
  }
  template <int P> DI void step(int k) {  // column P is the newest, (P + 1) % 3 the oldest
    UNROLL for (int h = 0; h < HALVES; h++) UNROLL for (int q = 0; q < HIGH; q++) unpack(this->raw[P % AHEAD][h][q], x[P][h][q]);
    this->take(k + AHEAD, P + AHEAD);
    const bool ahead = !EDGE || (k > 0 && k + 1 < this->count);
    UNROLL for (int r = 0; r < TALL; r++) {
      float to[HALVES][V], product[V];
      if (k > 1) unpack(grad[r], to[0]);
      grad[r] = ahead && this->has(r) ? fetch(y.row(r, P * YT)) : nothing();
      if (k < 2) continue;
      UNROLL for (int v = 0; v < V; v++) {
        float s[2] = {c.bias[0][v], c.bias[1][v]};
        UNROLL for (int h = 0; h < 2; h++) UNROLL for (int q = 0; q < 3; q++) UNROLL for (int j = 0; j < 3; j++)
          s[h] = fmaf(c.w[h][q * 3 + j][v], x[(P + 1 + j) % 3][h][r + q][v], s[h]);
        const float open = act(s[0]);
        product[v] = open * s[1];
        to[1][v] = to[0][v] * open;
        to[0][v] *= s[1] * slope(s[0]);
      }
      if (MADE && this->has(r)) store(product, made.row(r, P * MT));
      if (this->has(r)) UNROLL for (int h = 0; h < 2; h++) store(to[h], g.row(r, P * GT) + h * CHANNELS);
      UNROLL for (int h = 0; h < HALVES; h++) UNROLL for (int v = 0; v < V; v++) {
        UNROLL for (int q = 0; q < 3; q++) UNROLL for (int j = 0; j < 3; j++)
          dw.of[h][q * 3 + j][v] = fmaf(to[h][v], x[(P + 1 + j) % 3][h][r + q][v], dw.of[h][q * 3 + j][v]);
        if (BIAS) dw.of[h][TAPS - 1][v] += to[h][v];
      }
    }
  }
};
