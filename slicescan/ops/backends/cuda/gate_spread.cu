// Without a gate: the gradients of x, weight and bias in one pass over y's gradient, whose neighbourhoods a thread holds, and x.
template <bool EDGE> struct Walk : Strip<EDGE> {
  const Taps& c; Sums& dw;
  Rows y, g;
  float x[3][HIGH][V];  // of y's gradient
  Raw middle[TALL];
  DI Walk(const Args& a, const Taps& c, const Item& at, int d, Sums& dw)
      : Strip<EDGE>(a, at, d), c(c), dw(dw), y(rows_of(a.y, YT, at.b, at.row, at.column - 1, d)),
        g(rows_of(a.g, GT, at.b, at.row, at.column - 2, d)) {}
  DI void advance() { this->Strip<EDGE>::x.at += 3 * XT * ES; y.at += 3 * YT * ES; g.at += 3 * GT * ES; }
  template <int P> DI void step(int k) {  // column P is the newest, (P + 1) % 3 the oldest
    UNROLL for (int q = 0; q < HIGH; q++) unpack(this->raw[P % AHEAD][0][q], x[P][q]);
    this->take(k + AHEAD, P + AHEAD);
    const bool ahead = !EDGE || (k > 0 && k + 1 < this->count);
    UNROLL for (int r = 0; r < TALL; r++) {
      float u[V], dx[V];
      if (k > 1) unpack(middle[r], u);
      middle[r] = ahead && this->has(r) ? fetch(y.row(r, P * YT)) : nothing();
      if (k < 2) continue;
      UNROLL for (int v = 0; v < V; v++) {
        dx[v] = 0.f;
        UNROLL for (int q = 0; q < 3; q++) UNROLL for (int j = 0; j < 3; j++) {
          const float g = x[(P + 1 + j) % 3][r + q][v]; const int t = q * 3 + j;
          dx[v] = fmaf(c.w[0][t][v], g, dx[v]); dw.of[0][8 - t][v] = fmaf(u[v], g, dw.of[0][8 - t][v]);
        }
        if (BIAS) dw.of[0][TAPS - 1][v] += x[(P + 2) % 3][r + 1][v];
      }
      if (this->has(r)) store(dx, g.row(r, P * GT));
    }
  }
};
