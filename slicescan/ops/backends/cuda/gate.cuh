// Depth-wise 3x3 convolution of a map, zeros around it; with GATE the second half of the channels is multiplied by the
// activated first half: y = act(a) b. A thread has V neighbouring channels of each half and walks STRIP columns of TALL
// rows. Set by the host: V, STRIP, TALL, GATE, ACT (0 none, 1 SiLU, 2 GELU).
constexpr int HALVES = GATE ? 2 : 1;
struct Args {
  Map x, y, g;  // forward: x, y; gradient: x, y's gradient, and what that of the convolution's result goes to with GATE
  const float *weight, *bias;  // [9][channel], so that neighbouring threads read neighbouring numbers; [channel]
  float* sums;  // gradient: [row of blocks][channel][10], dweight and dbias
  i64 batch, height, width, channels, rows;  // channels of one half
};

struct Item { int b, row, column; };  // an image, the first row and column of a piece
DI i64 items_of(const Args& a) {
  return a.batch * ((a.width + STRIP - 1) / STRIP) * ((a.height + TALL - 1) / TALL);
}
DI Item item_of(const Args& a, i64 i) {  // bands of one strip are neighbours: the rows that two of them read stay near
  const int bands = (int)((a.height + TALL - 1) / TALL), strips = (int)((a.width + STRIP - 1) / STRIP);
  const i64 rest = i / bands; const int band = (int)(i - rest * bands), b = (int)(rest / strips);
  return Item{b, band * TALL, (int)(rest - (i64)b * strips) * STRIP};
}
DI idx place(const Map& m, int b, int row, int column, int d) {
  return (idx)b * (idx)m.b + (idx)row * (idx)m.s + (idx)column * (idx)m.t + (idx)d * (V == 1 ? (idx)m.d : 1);
}
DI void load(float* v, const Args& a, const Map& m, int b, int row, int column, int d) {
  const bool ok = row >= 0 && row < (int)a.height && column >= 0 && column < (int)a.width;
  const T* p = (const T*)m.at + place(m, b, row, column, d);
  if constexpr (ES == 4 && V == 2) {
    const float2 x = ok ? __ldg((const float2*)p) : make_float2(0.f, 0.f);
    v[0] = x.x; v[1] = x.y;
  } else if constexpr (ES == 2 && V == 4) {
    const uint2 x = ok ? __ldg((const uint2*)p) : make_uint2(0u, 0u);
    v[0] = get((T)x.x); v[1] = get((T)(x.x >> 16)); v[2] = get((T)x.y); v[3] = get((T)(x.y >> 16));
  } else if constexpr (ES == 2 && V == 2) {
    const u32 x = ok ? __ldg((const u32*)p) : 0u;
    v[0] = get((T)x); v[1] = get((T)(x >> 16));
  } else UNROLL for (int i = 0; i < V; i++) v[i] = ok ? get(__ldg(p + i)) : 0.f;
}
DI void store(const float* v, const Map& m, int b, int row, int column, int d) {
  T* p = (T*)m.at + place(m, b, row, column, d);
  if constexpr (ES == 4 && V == 2) *(float2*)p = make_float2(v[0], v[1]);
  else if constexpr (ES == 2 && V == 2) *(u32*)p = (u32)put(v[0]) | (u32)put(v[1]) << 16;
  else if constexpr (ES == 2 && V == 4)
    *(uint2*)p = make_uint2((u32)put(v[0]) | (u32)put(v[1]) << 16, (u32)put(v[2]) | (u32)put(v[3]) << 16);
  else UNROLL for (int i = 0; i < V; i++) p[i] = put(v[i]);
}
struct Taps { float w[HALVES][9][V], bias[HALVES][V]; };
DI void load_taps(Taps& c, const Args& a, int d) {
  UNROLL for (int h = 0; h < HALVES; h++) UNROLL for (int k = 0; k < 10; k++) {
    float* to = k < 9 ? c.w[h][k] : c.bias[h];
    const float* from = k < 9 ? a.weight + (i64)k * HALVES * a.channels : a.bias;
    if (from) from += h * a.channels + d;
    if constexpr (V % 2 == 0) UNROLL for (int i = 0; i < V; i += 2) {
      const float2 x = from ? __ldg((const float2*)(from + i)) : make_float2(0.f, 0.f);
      to[i] = x.x; to[i + 1] = x.y;
    } else UNROLL for (int i = 0; i < V; i++) to[i] = from ? __ldg(from + i) : 0.f;
  }
}
DI float normal_share(float x) { return 0.5f + 0.5f * erff(x * 0.7071067811865476f); }  // of what lies below x
DI float act(float x) { return ACT == 1 ? x * sigmoid(x) : ACT == 2 ? x * normal_share(x) : x; }
DI float slope(float x) {
  if (ACT == 1) { const float s = sigmoid(x); return s * fmaf(x, 1.f - s, 1.f); }
  if (ACT == 2) return fmaf(x * 0.3989422804014327f, ex2(-0.5f * LOG2E * x * x), normal_share(x));
  return 1.f;
}
