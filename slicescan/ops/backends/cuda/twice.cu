// Bilinear enlargement of an image by two with half-pixel centres: every new pixel is three quarters of the nearest old one
// and one quarter of the next, along both axes; beyond the edge lies the edge. One thread an old pixel.
struct Args { Pixels x, y; i64 batch, height, width, channels; };  // x: the small map or its gradient; y: the large one

struct Place { int row, column; idx first; };  // of a small pixel, and the number of its image's first one
DI Place place_of(const Args& a, idx pixel) {
  const int width = (int)a.width, height = (int)a.height;
  const idx line = pixel / width; const int row = (int)(line % height);
  return Place{row, (int)(pixel - line * width), (line - row) * width};
}
DI int inside(int i, int n) { return i < 0 ? 0 : i < n ? i : n - 1; }

extern "C" __global__ void __launch_bounds__(256) twice_forward(const __grid_constant__ Args a) {
  const Item at = item_of(a.batch * a.height * a.width, a.channels);
  if (!at.ok) return;
  const Place p = place_of(a, at.pixel); const int width = (int)a.width, height = (int)a.height;
  float lines[3][2][V];  // rows above, at and below, enlarged along the row
  UNROLL for (int r = 0; r < 3; r++) {
    const idx line = p.first + (idx)inside(p.row + r - 1, height) * width;
    float before[V], here[V], after[V];
    load(before, a.x, line + inside(p.column - 1, width), at.d); load(here, a.x, line + p.column, at.d);
    load(after, a.x, line + inside(p.column + 1, width), at.d);
    UNROLL for (int v = 0; v < V; v++) {
      lines[r][0][v] = 0.75f * here[v] + 0.25f * before[v]; lines[r][1][v] = 0.75f * here[v] + 0.25f * after[v];
    }
  }
  UNROLL for (int r = 0; r < 2; r++) UNROLL for (int c = 0; c < 2; c++) {
    float y[V];
    UNROLL for (int v = 0; v < V; v++) y[v] = 0.75f * lines[1][c][v] + 0.25f * lines[2 * r][c][v];
    store(y, a.y, 4 * p.first + ((idx)(2 * p.row + r) * width + p.column) * 2 + c, at.d);
  }
}
extern "C" __global__ void __launch_bounds__(256) twice_backward(const __grid_constant__ Args a) {
  const Item at = item_of(a.batch * a.height * a.width, a.channels);
  if (!at.ok) return;
  const Place p = place_of(a, at.pixel); const int width = 2 * (int)a.width, height = 2 * (int)a.height;
  float sum[V] = {};
  UNROLL for (int r = 0; r < 4; r++) UNROLL for (int c = 0; c < 4; c++) {
    const float share = (r % 3 ? 0.75f : 0.25f) * (c % 3 ? 0.75f : 0.25f);
    const idx line = 4 * p.first + (idx)inside(2 * p.row + r - 1, height) * width;
    float dy[V];
    load(dy, a.y, line + inside(2 * p.column + c - 1, width), at.d);
    UNROLL for (int v = 0; v < V; v++) sum[v] = fmaf(share, dy[v], sum[v]);
  }
  store(sum, a.x, at.pixel, at.d);
}
