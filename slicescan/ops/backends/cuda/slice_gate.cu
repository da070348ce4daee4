// y = first times the gate of each row, beside second times that of each column. One thread the same channels of both.
struct Args { Pixels first, second, rows, columns, y; i64 pixels, height, width, channels; };

extern "C" __global__ void __launch_bounds__(256) slice_gate_forward(const __grid_constant__ Args a) {
  const Item at = item_of(a.pixels, a.channels);
  if (!at.ok) return;
  const int width = (int)a.width, height = (int)a.height, channels = (int)a.channels;
  const idx line = at.pixel / width, image = line / height;  // rows are numbered through all images, as their gates are
  float first[V], second[V], row[V], column[V];
  load(first, a.first, at.pixel, at.d); load(second, a.second, at.pixel, at.d);
  load(row, a.rows, line, at.d); load(column, a.columns, image * width + (at.pixel - line * width), at.d);
  UNROLL for (int v = 0; v < V; v++) { first[v] *= row[v]; second[v] *= column[v]; }
  store(first, a.y, at.pixel, at.d); store(second, a.y, at.pixel, channels + at.d);
}
