// Rows and columns of a map (batch, height, width, 2 HALF) as wholes: the first half of the channels belongs to rows, the second
// to columns. What they have lies side by side, (batch, length, 2, HALF), with zeros behind the last of fewer slices. Set by the
// host: HALF, KIND, V neighbouring channels of a thread, MORE for the gradients.
constexpr int VECTORS = HALF / V, AHEAD = 4, ITEMS = 2;  // AHEAD: what a thread reads at once; ITEMS: what it gates
struct __align__(ES * V) Vector { T of[V]; };
DI const Vector& at(const char* p, i64 element) { return *(const Vector*)((const T*)p + element); }

// Sums along one axis for one half. A sum has `steps` numbers, `step` elements apart; `items` vectors of sums lie side by side,
// and the next such `jump` elements on. A block has one part of the steps for `lanes` items.
struct Side { float* sums; i64 slices, blocks, tiles, lanes, items, parts, each, steps, step, jump; };
struct SumArgs {
  const char *x, *more;  // more: a factor of what is summed; without MORE means are taken
  char* out; i64 batch, length;
  Side rows, columns;
};

extern "C" __global__ void __launch_bounds__(256) slice_gate_sums(const __grid_constant__ SumArgs a) {
  extern __shared__ __align__(16) char shared[];
  float* sums = (float*)shared;  // [groups][lanes][V]
  const bool second = blockIdx.x >= (u32)a.rows.blocks;
  const Side& s = second ? a.columns : a.rows;
  const int block = (int)blockIdx.x - (second ? (int)a.rows.blocks : 0), parts = (int)s.parts, tiles = (int)s.tiles;
  const int rest = block / parts, part = block - rest * parts, whole = rest / tiles, tile = rest - whole * tiles;
  const int lanes = (int)s.lanes, groups = 256 / lanes, group = (int)threadIdx.x / lanes, lane = (int)threadIdx.x - group * lanes;
  const int item = tile * lanes + lane, end = (int)(s.steps < (part + 1) * s.each ? s.steps : (part + 1) * s.each);
  const i64 step = s.step, first = whole * s.jump + (item / VECTORS * 2 + second) * (i64)HALF + item % VECTORS * V;
  float sum[V] = {};
  if (group < groups && item < (int)s.items)
    for (int i = part * (int)s.each + group; i < end; i += AHEAD * groups) {
      Vector x[AHEAD], more[AHEAD];  // all are read, beyond the end the last, before any is waited for
      UNROLL for (int k = 0; k < AHEAD; k++) {
        const i64 element = first + (i + k * groups < end ? i + k * groups : end - 1) * step;
        x[k] = at(a.x, element);
        if (MORE) more[k] = at(a.more, element);
      }
      UNROLL for (int k = 0; k < AHEAD; k++) if (i + k * groups < end)
        UNROLL for (int v = 0; v < V; v++) sum[v] = fmaf(get(x[k].of[v]), MORE ? get(more[k].of[v]) : 1.f, sum[v]);
    }
  if (group < groups) UNROLL for (int v = 0; v < V; v++) sums[threadIdx.x * V + v] = sum[v];
  block_sync();
  const int width = (int)s.items * V, left = width - tile * lanes * V, wide = lanes * V < left ? lanes * V : left;
  for (int i = threadIdx.x; i < wide; i += 256) {
    float total = 0.f;
    for (int g = 0; g < groups; g++) total += sums[g * lanes * V + i];
    s.sums[((i64)whole * parts + part) * width + tile * lanes * V + i] = total;
  }
}
extern "C" __global__ void __launch_bounds__(256) slice_gate_finish(const __grid_constant__ SumArgs a) {  // add the parts
  const i64 thread = (i64)blockIdx.x * 256 + threadIdx.x, pair = thread / (2 * HALF), image = pair / a.length;
  if (image >= a.batch) return;
  const int c = (int)(thread - pair * (2 * HALF)), slice = (int)(pair - image * a.length);
  const Side& s = c < HALF ? a.rows : a.columns;
  float sum = 0.f;
  if (slice < (int)s.slices) {
    const i64 width = s.items * V, i = (image * s.slices + slice) * HALF + c % HALF, whole = i / width;
    for (int part = 0; part < (int)s.parts; part++) sum += s.sums[(whole * s.parts + part) * width + i - whole * width];
  }
  ((T*)a.out)[thread] = put(MORE ? sum : sum / (float)s.steps);
}

// y = x gate, with MORE also + more / extent: the gated map, or the gradient of what was gated and averaged. A block has a part
// of a row.
struct GateArgs {
  const char *x, *gates, *more;
  char* y;  // may be x
  i64 height, width, length, parts;
};
extern "C" __global__ void __launch_bounds__(256) slice_gate_apply(const __grid_constant__ GateArgs a) {
  const int parts = (int)a.parts, width = (int)a.width, line = (int)blockIdx.x / parts, image = line / (int)a.height;
  const int start = ((int)blockIdx.x - line * parts) * (256 * ITEMS) + (int)threadIdx.x, end = width * 2 * VECTORS;
  const i64 first = (i64)line * width * (2 * HALF);
  Vector x[ITEMS], gate[ITEMS], more[ITEMS];  // all are read, as above, before y is written, which may be x
  UNROLL for (int k = 0; k < ITEMS; k++) {
    const int i = start + k * 256 < end ? start + k * 256 : end - 1;
    const int column = i / (2 * VECTORS), d = (i - column * 2 * VECTORS) * V;
    const i64 place = (image * a.length + (d < HALF ? line - image * (int)a.height : column)) * (2 * HALF) + d;
    x[k] = at(a.x, first + i * V); gate[k] = at(a.gates, place);
    if (MORE) more[k] = at(a.more, place);
  }
  UNROLL for (int k = 0; k < ITEMS; k++) {
    const int i = start + k * 256;
    if (i >= end) return;
    const float share = 1.f / (float)(i % (2 * VECTORS) < VECTORS ? a.width : a.height);
    Vector y;
    UNROLL for (int v = 0; v < V; v++) {
      const float gated = get(x[k].of[v]) * get(gate[k].of[v]);
      y.of[v] = put(MORE ? fmaf(get(more[k].of[v]), share, gated) : gated);
    }
    *(Vector*)((T*)a.y + first + i * V) = y;
  }
}
