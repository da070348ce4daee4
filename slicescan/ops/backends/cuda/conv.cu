// Causal depth-wise convolution along the slices of a map, y_t = bias + sum_j w_j x_(t-K+1+j), then SiLU. A thread has V
// neighbouring channels and walks STRIP steps. Set by the host: K taps, V, STRIP, SILU.
struct Args {
  Map x, y, dy, dx;  // forward: x, y; backward: x, dy, dx
  const float *weight, *bias;  // [channel][K], [channel]
  float* sums;  // backward: [row of blocks][channel][K + 1], dweight and dbias
  i64 batch, slices, length, channels, strip_first, rows;
};

struct Item { int b, s, t; };  // an image, a slice, the first step of a strip
DI Item item_of(const Args& a, i64 i) {
  const int strips = (int)((a.length + STRIP - 1) / STRIP), slices = (int)a.slices, inner = a.strip_first ? strips : slices;
  const int outer = a.strip_first ? slices : strips; const i64 rest = i / inner; const int x = (int)(i - rest * inner);
  const int b = (int)(rest / outer), y = (int)(rest - (i64)b * outer);
  return a.strip_first ? Item{b, y, x * STRIP} : Item{b, x, y * STRIP};
}
DI idx place(const Map& m, const Item& at, int t, int d) {
  return (idx)at.b * (idx)m.b + (idx)at.s * (idx)m.s + (idx)t * (idx)m.t + (idx)d * (V == 1 ? (idx)m.d : 1);
}
DI void load(float* v, const Map& m, const Item& at, int t, int d, bool ok) {
  const T* p = (const T*)m.at + place(m, at, t, d);
  if constexpr (ES == 4 && V == 4) {
    const float4 x = ok ? __ldg((const float4*)p) : make_float4(0.f, 0.f, 0.f, 0.f);
    v[0] = x.x; v[1] = x.y; v[2] = x.z; v[3] = x.w;
  } else if constexpr (ES == 2 && V == 4) {
    const uint2 x = ok ? __ldg((const uint2*)p) : make_uint2(0, 0);
    v[0] = get((T)x.x); v[1] = get((T)(x.x >> 16)); v[2] = get((T)x.y); v[3] = get((T)(x.y >> 16));
  } else UNROLL for (int i = 0; i < V; i++) v[i] = ok ? get(__ldg(p + i)) : 0.f;
}
DI void store(const float* v, const Map& m, const Item& at, int t, int d) {
  T* p = (T*)m.at + place(m, at, t, d);
  if constexpr (ES == 4 && V == 4) *(float4*)p = make_float4(v[0], v[1], v[2], v[3]);
  else if constexpr (ES == 2 && V == 4)
    *(uint2*)p = make_uint2((u32)put(v[0]) | (u32)put(v[1]) << 16, (u32)put(v[2]) | (u32)put(v[3]) << 16);
  else UNROLL for (int i = 0; i < V; i++) p[i] = put(v[i]);
}
struct Taps { float w[K][V], bias[V]; };
DI void load_taps(Taps& c, const Args& a, int d) {
  UNROLL for (int i = 0; i < V; i++) {
    UNROLL for (int j = 0; j < K; j++) c.w[j][i] = a.weight[(i64)(d + i) * K + j];
    c.bias[i] = a.bias ? a.bias[d + i] : 0.f;
  }
}
// The K latest steps, the last at [K - 1]; loops over steps are unrolled, so that shifting costs nothing.
DI void shift(float (*window)[V]) {
  UNROLL for (int j = 0; j + 1 < K; j++) UNROLL for (int i = 0; i < V; i++) window[j][i] = window[j + 1][i];
}

extern "C" __global__ void __launch_bounds__(256) conv_forward(const __grid_constant__ Args a) {
  const int vectors = (int)a.channels / V, strips = (int)((a.length + STRIP - 1) / STRIP);
  const i64 i = (i64)blockIdx.x * 256 + threadIdx.x, item = i / vectors; const int d = (int)(i - item * vectors) * V;
  if (item >= a.batch * a.slices * strips) return;
  const Item at = item_of(a, item); Taps c; load_taps(c, a, d);
  float x[K][V];
  UNROLL for (int j = 0; j + 1 < K; j++) load(x[j + 1], a.x, at, at.t - K + 1 + j, d, at.t - K + 1 + j >= 0);
  UNROLL for (int k = 0; k < STRIP; k++) {
    const int t = at.t + k; const bool ok = t < (int)a.length;
    shift(x); load(x[K - 1], a.x, at, t, d, ok);
    float y[V];
    UNROLL for (int v = 0; v < V; v++) {
      y[v] = c.bias[v];
      UNROLL for (int j = 0; j < K; j++) y[v] = fmaf(c.w[j][v], x[j][v], y[v]);
      if (SILU) y[v] *= sigmoid(y[v]);
    }
    if (ok) store(y, a.y, at, t, d);
  }
}

extern "C" __global__ void __launch_bounds__(256) conv_backward(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) char shared[];
  const int vectors = (int)a.channels / V, strips = (int)((a.length + STRIP - 1) / STRIP), across = vectors < 32 ? vectors : 32;
  const int high = 256 / across, column = threadIdx.x % across, line = threadIdx.x / across, rows = (int)a.rows;
  const int vector = (int)(blockIdx.x / rows) * across + column, row = (int)(blockIdx.x % rows), d = vector * V;
  const bool in = vector < vectors && line < high;
  float dw[K + 1][V] = {};  // the last is dbias
  if (in) {
    Taps c; load_taps(c, a, d);
    for (i64 item = (i64)row * high + line; item < a.batch * a.slices * strips; item += (i64)rows * high) {
      const Item at = item_of(a, item);
      float x[K][V], g[K][V] = {};
      UNROLL for (int j = 0; j + 1 < K; j++) load(x[j + 1], a.x, at, at.t - K + 1 + j, d, at.t - K + 1 + j >= 0);
      UNROLL for (int k = 0; k < STRIP + K - 1; k++) {
        const int t = at.t + k; const bool ok = t < (int)a.length;
        shift(x); load(x[K - 1], a.x, at, t, d, ok);
        shift(g); load(g[K - 1], a.dy, at, t, d, ok);
        float dx[V];
        UNROLL for (int v = 0; v < V; v++) {
          if (SILU) {
            float y = c.bias[v];
            UNROLL for (int j = 0; j < K; j++) y = fmaf(c.w[j][v], x[j][v], y);
            const float s = sigmoid(y);
            g[K - 1][v] *= s * fmaf(y, 1.f - s, 1.f);
          }
          if (k < STRIP) {
            UNROLL for (int j = 0; j < K; j++) dw[j][v] = fmaf(g[K - 1][v], x[j][v], dw[j][v]);
            dw[K][v] += g[K - 1][v];
          }
          dx[v] = 0.f;
          UNROLL for (int j = 0; j < K; j++) dx[v] = fmaf(c.w[j][v], g[K - 1 - j][v], dx[v]);
        }
        if (k >= K - 1 && t - K + 1 < (int)a.length) store(dx, a.dx, at, t - K + 1, d);
      }
    }
  }
  float* sums = (float*)shared;  // [256][(K + 1) V]
  UNROLL for (int j = 0; j <= K; j++) UNROLL for (int v = 0; v < V; v++) sums[threadIdx.x * (K + 1) * V + j * V + v] = dw[j][v];
  block_sync();
  for (int i = threadIdx.x; i < across * (K + 1) * V; i += 256) {
    const int v = i % V, j = i / V % (K + 1), who = i / V / (K + 1), channel = ((int)(blockIdx.x / rows) * across + who) * V + v;
    float sum = 0.f;
    for (int l = 0; l < high; l++) sum += sums[((l * across + who) * (K + 1) + j) * V + v];
    if (channel < (int)a.channels) a.sums[((i64)row * a.channels + channel) * (K + 1) + j] = sum;
  }
}
