// The sums that follow the backward pass, each in a fixed order.

// Rows of [rows][columns] added up. Each row of blocks takes `slab` rows; the last pass has one and deals columns out:
// [0, c1) to out0, [c1, c2) to out1, the rest to out2.
struct SumArgs { const float* from; float *out0, *out1, *out2; i64 rows, columns, slab, c1, c2; };

extern "C" __global__ void __launch_bounds__(512) sum_rows(const __grid_constant__ SumArgs a) {
  extern __shared__ __align__(16) char shared[];
  float* sums = (float*)shared;  // [16][32]
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  const i64 column = (i64)blockIdx.x * 32 + lane, start = (i64)blockIdx.y * a.slab;
  const i64 end = start + a.slab < a.rows ? start + a.slab : a.rows;
  float sum = 0.f;
  if (column < a.columns) {
    _Pragma("unroll 8")
    for (i64 row = start + part; row < end; row += 16) sum += a.from[row * a.columns + column];
  }
  sums[part * 32 + lane] = sum;
  block_sync();
  if (part == 0 && column < a.columns) {
    for (int p = 1; p < 16; p++) sum += sums[p * 32 + lane];
    if (column < a.c1) a.out0[(i64)blockIdx.y * a.columns + column] = sum;
    else if (column < a.c2) a.out1[column - a.c1] = sum;
    else a.out2[column - a.c2] = sum;
  }
}

// dB and dC from the blocks' partial sums [group][block][sequence][step][2][N].
struct MixArgs { Size size; Mix dB, dC; const float* mixing; };

extern "C" __global__ void __launch_bounds__(256) sum_mixing(const __grid_constant__ MixArgs a) {
  constexpr int V = N % 4 == 0 ? 4 : 1, ROW = 2 * N / V;
  const Size& z = a.size;
  const i64 sequences = z.units / z.chunks, steps = sequences * z.length, i = (i64)blockIdx.x * 256 + threadIdx.x;
  const i64 step = i / ROW; const int element = (int)(i - step * ROW) * V, group = (int)(step / steps);
  if (group >= (int)z.groups) return;
  const i64 row = step - group * steps; const int sequence = (int)(row / z.length), p = (int)(row - sequence * z.length);
  const int is_c = element / N, n = element % N;
  const float* from = a.mixing + ((i64)group * z.blocks * steps + row) * (2 * N) + element;
  float sum[V];
  UNROLL for (int j = 0; j < V; j++) sum[j] = 0.f;
  for (int block = 0; block < (int)z.blocks; block++) {
    if constexpr (V == 4) {
      const float4 x = *(const float4*)(from + block * steps * (2 * N));
      sum[0] += x.x; sum[1] += x.y; sum[2] += x.z; sum[3] += x.w;
    } else sum[0] += from[block * steps * (2 * N)];
  }
  const Mix& m = is_c ? a.dC : a.dB; const int b = sequence / (int)z.slices;
  T* to = (T*)m.at + place(m, z, b, sequence - b * (int)z.slices, p) + (idx)group * (idx)m.g + n * (idx)m.n;
  UNROLL for (int j = 0; j < V; j++) to[j * (idx)m.n] = put(sum[j]);
}
