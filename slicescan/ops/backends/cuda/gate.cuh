// Depth-wise 3x3 convolution of a map, zeros around it; with GATE the second half of the channels is multiplied by the
// activated first half: y = act(a) b. A thread has V neighbouring channels of each half and walks along a strip of TALL rows,
// three columns a turn. Set by the host: KIND of the maps and WKIND of the weights, V, TALL, GATE, ACT (0 none, 1 SiLU, 2 GELU),
// AHEAD, BIAS, MADE, TURN (taps from the last to the first), CHANNELS of a half, and XT, YT, GT, MT (elements from pixel to pixel
// of x, y, g and made).
constexpr int HALVES = GATE ? 2 : 1, HIGH = TALL + 2, TAPS = 9 + BIAS;
#if WKIND == 2
typedef float W;
DI float real(W x) { return x; }
#else
typedef u16 W;
DI float real(W x) { return WKIND == 1 ? from_float16(x) : low(x); }
#endif
struct Args {
  Map x, y, g;  // forward: x, y; gradient: x, y's gradient, that of the convolution's result; spread: y's gradient, x, its own
  Map made;  // gradient with MADE: what the gate made
  const W *weight, *bias;  // [channel][9]; [channel]
  float* sums;  // [row of blocks][channel][TAPS]: dweight, dbias
  i64 batch, height, width, strip, rows;
};

struct Item { int b, row, column; };  // an image, the first row and column of a piece
DI i64 items_of(const Args& a) {
  return a.batch * ((a.width + a.strip - 1) / a.strip) * ((a.height + TALL - 1) / TALL);
}
DI Item item_of(const Args& a, i64 i) {  // bands of one strip are neighbours: the rows that two of them read stay near
  const int bands = (int)((a.height + TALL - 1) / TALL), strips = (int)((a.width + a.strip - 1) / a.strip);
  const i64 rest = i / bands; const int band = (int)(i - rest * bands), b = (int)(rest / strips);
  return Item{b, band * TALL, (int)(rest - (i64)b * strips) * (int)a.strip};
}
DI bool within(const Args& a, const Item& at) {  // whether a piece, its neighbourhood and what is read ahead lie inside of the map
  return at.row > 0 && at.row + TALL < (int)a.height && at.column > 0 && at.column + (int)a.strip + AHEAD < (int)a.width;
}

// V neighbouring elements as they lie in memory.
#if V == 1
typedef T Raw;
DI Raw nothing() { return 0; }
DI void unpack(Raw r, float* v) { v[0] = get(r); }
DI Raw packed(const float* v) { return put(v[0]); }
#elif KIND == 2
typedef float2 Raw;
DI Raw nothing() { return make_float2(0.f, 0.f); }
DI void unpack(Raw r, float* v) { v[0] = r.x; v[1] = r.y; }
DI Raw packed(const float* v) { return make_float2(v[0], v[1]); }
#else
typedef u32 Raw;
DI Raw nothing() { return 0u; }
DI void unpack(Raw r, float* v) { v[0] = get((T)r); v[1] = KIND == 0 ? high(r) : get((T)(r >> 16)); }
DI Raw packed(const float* v) { return KIND == 0 ? pack(v[0], v[1]) : (u32)put(v[0]) | (u32)put(v[1]) << 16; }
#endif
DI Raw fetch(const T* p) { return __ldg((const Raw*)p); }
DI void store(const float* v, T* p) { *(Raw*)p = packed(v); }

// A piece's rows of a map from above it on. Addresses are put together anew for each access: a register more for each of them
// would cost warps.
struct Rows {
  char* at;  // the pixel of the first row that comes next
  int pitch;  // bytes from row to row
  DI T* row(int r, int ahead) const { return (T*)(at + (i64)r * pitch) + ahead; }
};
DI Rows rows_of(const Map& m, int step, int b, int row, int column, int d) {
  return Rows{(char*)((T*)m.at + (i64)b * m.b + (i64)row * m.s + (i64)column * step + d), (int)m.s * ES};
}

// Walks along a piece and its neighbourhood: column k lies k - 1 behind the piece's first. `raw` holds the AHEAD (1 or 3) columns
// that come next, column k in slot k % AHEAD.
template <bool EDGE> struct Strip {
  const Args& a; const Item& at;
  const int count;  // columns; a multiple of three within the map
  Rows x;
  Raw raw[AHEAD][HALVES][HIGH];
  DI Strip(const Args& a, const Item& at, int d)
      : a(a), at(at), count(count_of(a, at)), x(rows_of(a.x, XT, at.b, at.row - 1, at.column - 1, d)) {
    UNROLL for (int k = 0; k < AHEAD; k++) take(k, k);
  }
  DI static int count_of(const Args& a, const Item& at) {
    const int left = (int)a.width - at.column;
    return (EDGE && left < (int)a.strip ? left : (int)a.strip) + 2;
  }
  DI bool has(int r) const { return !EDGE || (unsigned)(at.row + r) < (unsigned)a.height; }  // a row, from the piece's first
  DI void take(int k, int ahead) {  // column k, `ahead` of where the walk's last three columns began
    const bool inside = !EDGE || (unsigned)(at.column + k - 1) < (unsigned)a.width;
    UNROLL for (int q = 0; q < HIGH; q++) {
      const T* p = (const T*)x.row(q, ahead * XT); const bool ok = inside && has(q - 1);
      UNROLL for (int h = 0; h < HALVES; h++) raw[ahead % AHEAD][h][q] = ok ? fetch(p + h * CHANNELS) : nothing();
    }
  }
};
// Calls step<P>(k) for each column of a walk, P = k % 3: what rotates over three columns stays in registers.
template <bool EDGE, class Walk> DI void over_columns(Walk& walk) {
  #pragma unroll 1
  for (int k = 0; k < walk.count; k += 3) {
    walk.template step<0>(k);
    if (EDGE && k + 1 >= walk.count) break;
    walk.template step<1>(k + 1);
    if (EDGE && k + 2 >= walk.count) break;
    walk.template step<2>(k + 2);
    walk.advance();
  }
}

struct Taps { float w[HALVES][9][V], bias[HALVES][V]; };
DI void load_taps(Taps& c, const Args& a, int d) {
  UNROLL for (int h = 0; h < HALVES; h++) UNROLL for (int v = 0; v < V; v++) {
    const i64 channel = h * CHANNELS + d + v;
    UNROLL for (int k = 0; k < 9; k++) c.w[h][TURN ? 8 - k : k][v] = real(__ldg(a.weight + channel * 9 + k));
    c.bias[h][v] = BIAS ? real(__ldg(a.bias + channel)) : 0.f;
  }
}
DI float normal_share(float x) { return 0.5f + 0.5f * erff(x * 0.7071067811865476f); }  // of what lies below x
DI float act(float x) {
  if (ACT == 1) return KIND == 0 ? fmaf(x * 0.5f, tanh_fast(x * 0.5f), x * 0.5f) : x * sigmoid(x);
  return ACT == 2 ? x * normal_share(x) : x;
}
DI float slope(float x) {
  if (ACT == 1) { const float s = sigmoid(x); return s * fmaf(x, 1.f - s, 1.f); }
  if (ACT == 2) return fmaf(x * 0.3989422804014327f, ex2(-0.5f * LOG2E * x * x), normal_share(x));
  return 1.f;
}
struct Sums { float of[HALVES][TAPS][V]; };
