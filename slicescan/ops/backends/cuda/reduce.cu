// The sums that follow the backward pass, in one launch and in a fixed order: first the blocks that finish dB, dC and dx from the
// warps' sums, mixing [group][block][group of units][tile][SPW][TS][2 NT + LOW]; then those that add up rows of [rows][columns]. A slab of
// rows becomes one row of out0; if one slab has all rows, columns go to their gradients: [0, c1) to out0, [c1, c2) to out1, ...
struct Args {
  Size size;
  Mix dB, dC;
  Map ddelta;  // of low rank
  const float *mixing, *rows_in;
  float *out0, *out1, *out2, *out3;
  i64 mix_blocks, rows, columns, slab, c1, c2, c3;
};

DI void finish_mixing(const Args& a) {
  constexpr int ROW = 2 * NT + LOW, FOURS = ROW / 4;
  const Size& z = a.size;
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
  const idx chunk = (idx)z.tiles * TS, steps = (idx)z.units * chunk, row = (idx)(i / FOURS);
  const int group = (int)(row / steps), unit = (int)((row - group * steps) / chunk);
  const int p = (int)(row - group * steps - unit * chunk), e = (int)(i % FOURS) * 4, which = RANK && e >= 2 * NT ? 2 : e / NT;
  if (group >= (int)z.groups) return;
  const Unit at = unit_of(z, unit);
  if (p >= at.left) return;
  constexpr int SPW = RW / LANES;
  const int unit_groups = ((int)z.units + SPW - 1) / SPW, tile = p / TS;
  const i64 pitch = (i64)unit_groups * (int)z.tiles * (SPW * TS * ROW);
  const i64 tiles_before = (i64)(unit / SPW) * (int)z.tiles + tile;
  const float* from = a.mixing + group * z.blocks * pitch + ((tiles_before * SPW + unit % SPW) * TS + p % TS) * ROW + e;
  float4 sum = *(const float4*)from;
  for (int block = 1; block < (int)z.blocks; block++) {
    const float4 x = *(const float4*)(from + block * pitch);
    sum.x += x.x; sum.y += x.y; sum.z += x.z; sum.w += x.w;
  }
  put_sum(a, z, at, at.first + p, group, which, e - which * NT, sum);
}

extern "C" __global__ void __launch_bounds__(256) scan_finish(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) char shared[];
  float* sums = (float*)shared;  // [8][32]
  if (blockIdx.x < a.mix_blocks) return finish_mixing(a);
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32, across = (int)((a.columns + 31) / 32);
  const int block = blockIdx.x - (int)a.mix_blocks, slab = block / across, column = (block - slab * across) * 32 + lane;
  const int start = slab * (int)a.slab, end = start + a.slab < a.rows ? start + (int)a.slab : (int)a.rows;
  float sum = 0.f;
  if (column < a.columns) {
    _Pragma("unroll 8")
    for (int row = start + part; row < end; row += 8) sum += a.rows_in[row * a.columns + column];
  }
  sums[part * 32 + lane] = sum;
  block_sync();
  if (part > 0 || column >= a.columns) return;
  for (int p = 1; p < 8; p++) sum += sums[p * 32 + lane];
  if (a.slab < a.rows) a.out0[slab * a.columns + column] = sum;
  else if (column < a.c1) a.out0[column] = sum;
  else if (column < a.c2) a.out1[column - a.c1] = sum;
  else if (column < a.c3) a.out2[column - a.c2] = sum;
  else a.out3[column - a.c3] = sum;
}

// delta_weight as the products of the passes take it: [channel][pitch], and behind it, if there are `ranks`, its transpose
// [ranks][width]; zero where it has no number.
struct WeightArgs { const float* weight; T* out; i64 channels, pitch, ranks, width; };

extern "C" __global__ void __launch_bounds__(256) scan_weights(const __grid_constant__ WeightArgs a) {
  const int rows = (int)(a.channels * a.pitch), i = blockIdx.x * 256 + threadIdx.x, j = i - rows;
  if (j >= (int)(a.ranks * a.width)) return;
  const int pitch = (int)(j < 0 ? a.pitch : a.width), at = j < 0 ? i : j, major = at / pitch, minor = at - major * pitch;
  const int d = j < 0 ? major : minor, r = j < 0 ? minor : major;
  a.out[i] = d < a.channels && r < RANK ? put(a.weight[d * RANK + r]) : put(0.f);
}

// From what every chunk does to a state and the state that enters the sequence (or zero): the state that enters each chunk,
// ends [sequence][chunk][channel][N] in place. `back` goes from the last chunk to the first. One thread a channel and state.
struct ChainArgs { const float *A, *enter; float* ends; const float* steps; i64 sequences, chunks, channels, back; };

extern "C" __global__ void __launch_bounds__(128) scan_chain(const __grid_constant__ ChainArgs a) {
  constexpr int AHEAD = 8;
  const i64 row = a.channels * N, i = (i64)blockIdx.x * 128 + threadIdx.x;
  if (i >= a.sequences * row) return;
  const i64 sequence = i / row, dn = i - sequence * row, d = dn / N; const int chunks = (int)a.chunks;
  const float rate = a.A[dn] * LOG2E;
  float h = a.enter ? a.enter[i] : 0.f;
  float* ends = a.ends + sequence * chunks * row + dn; const float* steps = a.steps + sequence * chunks * a.channels + d;
  for (int q0 = 0; q0 < chunks; q0 += AHEAD) {
    float end[AHEAD], step[AHEAD];
    UNROLL for (int j = 0; j < AHEAD; j++) if (q0 + j < chunks) {
      const int q = a.back ? chunks - 1 - q0 - j : q0 + j;
      end[j] = ends[q * row]; step[j] = steps[q * a.channels];
    }
    UNROLL for (int j = 0; j < AHEAD; j++) if (q0 + j < chunks) {
      const int q = a.back ? chunks - 1 - q0 - j : q0 + j;
      ends[q * row] = h;
      h = fmaf(ex2(rate * step[j]), h, end[j]);
    }
  }
}
