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

// dB and dC from the blocks' sums, mixing [group][block][unit][step of the chunk][2][NT].
struct MixArgs { Size size; Mix dB, dC; const float* mixing; };

extern "C" __global__ void __launch_bounds__(256) sum_mixing(const __grid_constant__ MixArgs a) {
  constexpr int FOURS = 2 * NT / 4;
  const Size& z = a.size;
  const i64 steps = z.units * z.tiles * TS, i = (i64)blockIdx.x * 256 + threadIdx.x, row = i / FOURS;
  const int group = (int)(row / steps), unit = (int)((row - group * steps) / (z.tiles * TS));
  const int p = (int)(row - group * steps - (i64)unit * z.tiles * TS), n = (int)(i % FOURS) * 4 % NT, is_c = (int)(i % FOURS) * 4 / NT;
  const Unit at = unit_of(z, unit);
  if (group >= (int)z.groups || p >= at.left) return;
  const float* from = a.mixing + (group * z.blocks * steps + row - group * steps) * (2 * NT) + i % FOURS * 4;
  float4 sum = *(const float4*)from;
  for (int block = 1; block < (int)z.blocks; block++) {
    const float4 x = *(const float4*)(from + block * steps * (2 * NT));
    sum.x += x.x; sum.y += x.y; sum.z += x.z; sum.w += x.w;
  }
  const Mix& m = is_c ? a.dC : a.dB;
  T* to = (T*)m.at + place(m, z, at.b, at.s, at.first + p) + (idx)group * (idx)m.g + n;
  const float all[4] = {sum.x, sum.y, sum.z, sum.w};
  if constexpr (N % 4 == 0 && NT == N && ES == 4) *(float4*)to = sum;
  else if constexpr (N % 4 == 0 && NT == N && KIND == 0) *(uint2*)to = make_uint2(pack(sum.x, sum.y), pack(sum.z, sum.w));
  else UNROLL for (int q = 0; q < 4; q++) if (n + q < N) to[q] = put(all[q]);
}
