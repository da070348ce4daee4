// How far two maps n diverge from a map x, sum of sigmoid(x) (log sigmoid(x) - log sigmoid(n)), and what a gate makes of
// it: z = (x, gate0 n0 + gate1 n1). The maps n have sizes of their own and are enlarged by nearest neighbour while read.
struct Level { Pixels map; i64 height, width, down, across; };  // down, across: bits of old over new size, float
struct Args {
  Pixels x, z, out;  // z: the result or its gradient; out: a gradient
  Level n[2];
  const float* factors;  // [image]: two gates; for gradients also those of the two sums
  float* sums;  // [image][row of blocks][2]
  i64 batch, height, width, channels, rows, which;  // which: the n whose gradient is made
};

DI int source(int i, i64 scale, i64 size) {  // the rule of torch
  const int j = (int)floorf((float)i * __uint_as_float((u32)scale));
  return j < (int)size ? j : (int)size - 1;
}
DI int first_of(int j, i64 scale, i64 size, int end) {  // the first i that source takes to j or beyond
  int i = (int)((float)j / __uint_as_float((u32)scale));
  i = i < end ? i : end;
  while (i > 0 && source(i - 1, scale, size) >= j) i--;
  while (i < end && source(i, scale, size) < j) i++;
  return i;
}
DI float log_sigmoid(float x) { return fminf(x, 0.f) - LN2 * lg2(1.f + ex2(-fabsf(x) * LOG2E)); }
DI void load_levels(float (*n)[V], const Args& a, idx pixel, int d) {
  const int width = (int)a.width, height = (int)a.height;
  const idx line = pixel / width, b = line / height; const int row = (int)(line - b * height), column = (int)(pixel - line * width);
  UNROLL for (int k = 0; k < 2; k++) {
    const Level& l = a.n[k];
    const idx from = (b * (idx)l.height + source(row, l.down, l.height)) * (idx)l.width + source(column, l.across, l.width);
    load(n[k], l.map, from, d);
  }
}
DI void add_up(const float* sum, float* to) {  // over the block, in a fixed order
  extern __shared__ __align__(16) char shared[];
  float* sums = (float*)shared;  // [2][256]
  UNROLL for (int k = 0; k < 2; k++) sums[k * 256 + threadIdx.x] = sum[k];
  for (int half = 128; half; half /= 2) {
    block_sync();
    if ((int)threadIdx.x < half) UNROLL for (int k = 0; k < 2; k++)
      sums[k * 256 + threadIdx.x] += sums[k * 256 + threadIdx.x + half];
  }
  if (threadIdx.x == 0) UNROLL for (int k = 0; k < 2; k++) to[k] = sums[k * 256];
}
// GRADIENT: instead of the divergences, the sums of each n times the gradient of what its gate multiplies.
extern "C" __global__ void __launch_bounds__(256) divergence_sums(const __grid_constant__ Args a) {
  const int rows = (int)a.rows, b = (int)blockIdx.x / rows, row = (int)blockIdx.x - b * rows, vectors = (int)a.channels / V;
  const idx pixels = (idx)a.height * (idx)a.width, items = pixels * vectors;
  float sum[2] = {};
  for (idx i = (idx)row * 256 + threadIdx.x; i < items; i += (idx)rows * 256) {
    const idx within = i / vectors, pixel = b * pixels + within; const int d = (int)(i - within * vectors) * V;
    float x[V], n[2][V];
    load(x, GRADIENT ? a.z : a.x, pixel, GRADIENT ? (int)a.channels + d : d); load_levels(n, a, pixel, d);
    UNROLL for (int v = 0; v < V; v++) {
      const float p = GRADIENT ? x[v] : sigmoid(x[v]), own = GRADIENT ? 0.f : log_sigmoid(x[v]);
      UNROLL for (int k = 0; k < 2; k++) sum[k] = fmaf(p, GRADIENT ? n[k][v] : own - log_sigmoid(n[k][v]), sum[k]);
    }
  }
  add_up(sum, a.sums + (i64)blockIdx.x * 2);
}
extern "C" __global__ void __launch_bounds__(256) divergence_mix(const __grid_constant__ Args a) {
  const i64 pixels = a.height * a.width; const Item at = item_of(a.batch * pixels, a.channels);
  if (!at.ok) return;
  const float* gates = a.factors + (at.pixel / (idx)pixels) * 2;
  float x[V], n[2][V];
  load(x, a.x, at.pixel, at.d); store(x, a.z, at.pixel, at.d);
  load_levels(n, a, at.pixel, at.d);
  UNROLL for (int v = 0; v < V; v++) x[v] = gates[0] * n[0][v] + gates[1] * n[1][v];
  store(x, a.z, at.pixel, (int)a.channels + at.d);
}
extern "C" __global__ void __launch_bounds__(256) divergence_gradient(const __grid_constant__ Args a) {  // of x
  const i64 pixels = a.height * a.width; const Item at = item_of(a.batch * pixels, a.channels);
  if (!at.ok) return;
  const float* slopes = a.factors + (at.pixel / (idx)pixels) * 4 + 2;
  float x[V], dx[V], n[2][V];
  load(x, a.x, at.pixel, at.d); load(dx, a.z, at.pixel, at.d); load_levels(n, a, at.pixel, at.d);
  UNROLL for (int v = 0; v < V; v++) {
    const float p = sigmoid(x[v]), turned = p * sigmoid(-x[v]), own = log_sigmoid(x[v]) + 1.f;
    UNROLL for (int k = 0; k < 2; k++) dx[v] = fmaf(slopes[k] * turned, own - log_sigmoid(n[k][v]), dx[v]);
  }
  store(dx, a.out, at.pixel, at.d);
}
extern "C" __global__ void __launch_bounds__(256) divergence_spread(const __grid_constant__ Args a) {  // gradient of one n
  const Level& l = a.n[a.which];
  const Item at = item_of(a.batch * l.height * l.width, a.channels);
  if (!at.ok) return;
  const idx line = at.pixel / (idx)l.width, b = line / (idx)l.height;
  const int row = (int)(line - b * (idx)l.height), column = (int)(at.pixel - line * (idx)l.width);
  const int top = first_of(row, l.down, l.height, (int)a.height), bottom = first_of(row + 1, l.down, l.height, (int)a.height);
  const int left = first_of(column, l.across, l.width, (int)a.width), right = first_of(column + 1, l.across, l.width, (int)a.width);
  float dy[V] = {}, p[V] = {}, x[V], n[V];
  for (int i = top; i < bottom; i++) for (int j = left; j < right; j++) {
    const idx pixel = (b * (idx)a.height + i) * (idx)a.width + j;
    load(x, a.z, pixel, (int)a.channels + at.d);
    UNROLL for (int v = 0; v < V; v++) dy[v] += x[v];
    load(x, a.x, pixel, at.d);
    UNROLL for (int v = 0; v < V; v++) p[v] += sigmoid(x[v]);
  }
  const float gate = a.factors[b * 4 + a.which], slope = a.factors[b * 4 + 2 + a.which];
  load(n, l.map, at.pixel, at.d);
  UNROLL for (int v = 0; v < V; v++) dy[v] = gate * dy[v] - slope * sigmoid(-n[v]) * p[v];
  store(dy, a.out, at.pixel, at.d);
}
