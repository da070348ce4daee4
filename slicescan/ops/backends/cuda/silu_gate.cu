// y = silu(gate) x; both gradients from that of y, and y itself into `made` if it is there.
struct Args { Pixels gate, x, y, dgate, dx, made; i64 pixels, channels; };

extern "C" __global__ void __launch_bounds__(256) silu_gate_forward(const __grid_constant__ Args a) {
  const Item at = item_of(a.pixels, a.channels);
  if (!at.ok) return;
  float gate[V], x[V];
  load(gate, a.gate, at.pixel, at.d); load(x, a.x, at.pixel, at.d);
  UNROLL for (int v = 0; v < V; v++) x[v] *= gate[v] * sigmoid(gate[v]);
  store(x, a.y, at.pixel, at.d);
}
extern "C" __global__ void __launch_bounds__(256) silu_gate_backward(const __grid_constant__ Args a) {
  const Item at = item_of(a.pixels, a.channels);
  if (!at.ok) return;
  float gate[V], x[V], dy[V], y[V];
  load(gate, a.gate, at.pixel, at.d); load(x, a.x, at.pixel, at.d); load(dy, a.y, at.pixel, at.d);
  UNROLL for (int v = 0; v < V; v++) {
    const float s = sigmoid(gate[v]), slope = s * fmaf(gate[v], 1.f - s, 1.f), dx = dy[v] * gate[v] * s;
    y[v] = x[v] * (gate[v] * s);
    gate[v] = dy[v] * x[v] * slope; x[v] = dx;
  }
  store(gate, a.dgate, at.pixel, at.d); store(x, a.dx, at.pixel, at.d);
  if (a.made.at) store(y, a.made, at.pixel, at.d);
}
