// Layer norm over the channels of every pixel, of maps whose pixels lie one behind the other. LANES lanes share a pixel: each
// has PIECES times V neighbouring channels of it, and of PIXELS pixels at once. Set by the host: C channels, V, LANES, PIECES,
// PIXELS, KIND and WEIGHTS (0 bfloat16, 1 float16, 2 float32) of maps and weights, WV weights that one access reads, ADD for a
// norm of a sum, BLOCKS of the backward pass that a multiprocessor holds.
struct Args {
  const char *x, *more, *grad;  // more: what is added to x; backward: the gradient of that sum, which is x. grad: that of y
  char *sum, *y;  // sum: x + more; backward: y is the gradient of x
  const char *weight, *bias;
  float* sums;  // backward: [block][2][C], dweight and dbias
  i64 pixels, rounds, eps;  // forward: a block takes the pixels of `rounds` rounds; backward: there are `rounds` blocks
};
constexpr int ES = KIND == 2 ? 4 : 2, GROUPS = 128 / LANES, ROUND = GROUPS * PIXELS;
constexpr float SHARE = 1.f / C;

template <int AS, int N> DI void load(float* v, const char* p) {
  constexpr int BYTES = N * (AS == 2 ? 4 : 2);
  u32 w[(BYTES + 3) / 4];
  if constexpr (BYTES == 16) { const uint4 q = __ldg((const uint4*)p); w[0] = q.x; w[1] = q.y; w[2] = q.z; w[3] = q.w; }
  else if constexpr (BYTES == 8) { const uint2 q = __ldg((const uint2*)p); w[0] = q.x; w[1] = q.y; }
  else if constexpr (BYTES == 4) w[0] = __ldg((const u32*)p);
  else w[0] = __ldg((const u16*)p);
  UNROLL for (int i = 0; i < N; i++) {
    if constexpr (AS == 2) v[i] = __uint_as_float(w[i]);
    else if constexpr (AS == 1) v[i] = from_float16((u16)(w[i / 2] >> i % 2 * 16));
    else v[i] = i % 2 ? high(w[i / 2]) : low(w[i / 2]);
  }
}
DI void store(char* p, const float* v) {
  constexpr int BYTES = V * ES;
  u32 w[(BYTES + 3) / 4];
  if constexpr (BYTES == 2) { *(u16*)p = KIND == 1 ? to_float16(v[0]) : to_bfloat16(v[0]); return; }
  UNROLL for (int i = 0; i < BYTES / 4; i++) {
    if constexpr (KIND == 2) w[i] = __float_as_uint(v[i]);
    else if constexpr (KIND == 1) w[i] = to_float16(v[2 * i]) | (u32)to_float16(v[2 * i + 1]) << 16;
    else w[i] = pack(v[2 * i], v[2 * i + 1]);
  }
  if constexpr (BYTES == 16) *(uint4*)p = make_uint4(w[0], w[1], w[2], w[3]);
  else if constexpr (BYTES == 8) *(uint2*)p = make_uint2(w[0], w[1]);
  else *(u32*)p = w[0];
}
DI float rounded(float x) { return KIND == 2 ? x : KIND == 1 ? from_float16(to_float16(x)) : low(to_bfloat16(x)); }

typedef float Part[PIECES][V];  // a lane's channels of a pixel, zeros behind the last channel
#define EACH_PIECE UNROLL for (int p = 0; p < PIECES; p++)
#define EACH EACH_PIECE UNROLL for (int v = 0; v < V; v++)
DI int channel_of(int p) { return (p * LANES + (int)threadIdx.x % LANES) * V; }
DI void load_weights(Part& w, const char* from) {
  EACH w[p][v] = 0.f;
  EACH_PIECE if (from && channel_of(p) < C) UNROLL for (int v = 0; v < V; v += WV)
    load<WEIGHTS, WV>(w[p] + v, from + (channel_of(p) + v) * (WEIGHTS == 2 ? 4 : 2));
}
DI void load_pixel(Part& x, const Args& a, const char* map, i64 pixel) {
  EACH x[p][v] = 0.f;
  EACH_PIECE if (pixel < a.pixels && channel_of(p) < C) load<KIND, V>(x[p], map + (pixel * C + channel_of(p)) * ES);
}
DI void store_pixel(const Part& x, const Args& a, char* map, i64 pixel) {
  EACH_PIECE if (pixel < a.pixels && channel_of(p) < C) store(map + (pixel * C + channel_of(p)) * ES, x[p]);
}
DI float mean_of(float sum) {
  UNROLL for (int distance = LANES / 2; distance; distance /= 2) sum += from_lane_xor(sum, distance);
  return sum * SHARE;
}
// Take the mean from x and return one over its standard deviation.
DI float centre(Part& x, const Args& a) {
  float sum = 0.f, square = 0.f;
  EACH sum += x[p][v];
  const float mean = mean_of(sum);
  EACH x[p][v] = channel_of(p) < C ? x[p][v] - mean : 0.f;
  EACH square = fmaf(x[p][v], x[p][v], square);
  return rsqrtf(mean_of(square) + __uint_as_float((u32)a.eps));
}

extern "C" __global__ void __launch_bounds__(128) norm_forward(const __grid_constant__ Args a) {
  Part weight, bias, x[PIXELS];
  load_weights(weight, a.weight); load_weights(bias, a.bias);
  i64 first = (i64)blockIdx.x * a.rounds * ROUND + threadIdx.x / LANES;
  for (int round = 0; round < (int)a.rounds; round++, first += ROUND) {
    UNROLL for (int k = 0; k < PIXELS; k++) load_pixel(x[k], a, a.x, first + k * GROUPS);
    UNROLL for (int k = 0; k < PIXELS; k++) {
      const i64 pixel = first + k * GROUPS;
      if (ADD) {
        Part more; load_pixel(more, a, a.more, pixel);
        EACH x[k][p][v] = rounded(x[k][p][v] + more[p][v]);
        store_pixel(x[k], a, a.sum, pixel);
      }
      const float scale = centre(x[k], a);
      EACH x[k][p][v] = fmaf(x[k][p][v] * scale, weight[p][v], bias[p][v]);
      store_pixel(x[k], a, a.y, pixel);
    }
  }
}

extern "C" __global__ void __launch_bounds__(128, BLOCKS) norm_backward(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) char shared[];
  Part weight, dweight = {}, dbias = {}, x[PIXELS], g[PIXELS];
  load_weights(weight, a.weight);
  for (i64 start = (i64)blockIdx.x * ROUND; start < a.pixels; start += a.rounds * ROUND) {
    const i64 first = start + threadIdx.x / LANES;
    UNROLL for (int k = 0; k < PIXELS; k++) {
      load_pixel(x[k], a, a.x, first + k * GROUPS); load_pixel(g[k], a, a.grad, first + k * GROUPS);
    }
    UNROLL for (int k = 0; k < PIXELS; k++) {
      const i64 pixel = first + k * GROUPS;
      float scale = centre(x[k], a), sum = 0.f, along = 0.f;
      if (pixel >= a.pixels) scale = 0.f;  // infinite without eps
      EACH {
        x[k][p][v] *= scale;
        dbias[p][v] += g[k][p][v]; dweight[p][v] = fmaf(g[k][p][v], x[k][p][v], dweight[p][v]);
        g[k][p][v] *= weight[p][v];
        sum += g[k][p][v]; along = fmaf(g[k][p][v], x[k][p][v], along);
      }
      sum = mean_of(sum); along = mean_of(along);
      EACH x[k][p][v] = scale * (g[k][p][v] - fmaf(x[k][p][v], along, sum));
      if (ADD) {
        Part more; load_pixel(more, a, a.more, pixel);
        EACH x[k][p][v] += more[p][v];
      }
      store_pixel(x[k], a, a.y, pixel);
    }
  }
  float* sums = (float*)shared;  // [4][2][C]
  EACH {
    UNROLL for (int distance = LANES; distance < 32; distance *= 2) {
      dweight[p][v] += from_lane_xor(dweight[p][v], distance); dbias[p][v] += from_lane_xor(dbias[p][v], distance);
    }
    if (threadIdx.x % 32 < LANES && channel_of(p) < C) {
      float* at = sums + threadIdx.x / 32 * 2 * C + channel_of(p) + v;
      at[0] = dweight[p][v]; at[C] = dbias[p][v];
    }
  }
  block_sync();
  for (int i = threadIdx.x; i < 2 * C; i += 128) {
    float sum = 0.f;
    for (int warp = 0; warp < 4; warp++) sum += sums[warp * 2 * C + i];
    a.sums[(i64)blockIdx.x * 2 * C + i] = sum;
  }
}
