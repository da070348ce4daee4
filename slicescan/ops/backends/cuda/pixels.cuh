// Maps as pixels at equal distances, the channels of each side by side. Set by the host: V neighbouring channels of a thread.
struct Pixels { char* at; i64 pitch; };  // elements from a pixel to the next

constexpr int BYTES = ES * V, WORDS = BYTES < 4 ? 1 : BYTES / 4;
DI void load(float* v, const Pixels& m, idx pixel, int d) {
  const T* p = (const T*)m.at + pixel * (idx)m.pitch + d;
  u32 word[WORDS];
  if constexpr (BYTES == 16) { const uint4 w = __ldg((const uint4*)p); word[0] = w.x; word[1] = w.y; word[2] = w.z; word[3] = w.w; }
  else if constexpr (BYTES == 8) { const uint2 w = __ldg((const uint2*)p); word[0] = w.x; word[1] = w.y; }
  else if constexpr (BYTES == 4) word[0] = __ldg((const u32*)p);
  if constexpr (BYTES == 2) v[0] = get(__ldg(p));
  else if constexpr (ES == 4) UNROLL for (int i = 0; i < V; i++) v[i] = __uint_as_float(word[i]);
  else UNROLL for (int i = 0; i < V; i++) v[i] = get((T)(word[i / 2] >> i % 2 * 16));
}
DI void store(const float* v, const Pixels& m, idx pixel, int d) {
  T* p = (T*)m.at + pixel * (idx)m.pitch + d;
  u32 word[WORDS];
  if constexpr (ES == 4) UNROLL for (int i = 0; i < V; i++) word[i] = __float_as_uint(v[i]);
  else if constexpr (V > 1) UNROLL for (int i = 0; i < V / 2; i++) word[i] = (u32)put(v[2 * i]) | (u32)put(v[2 * i + 1]) << 16;
  if constexpr (BYTES == 16) *(uint4*)p = make_uint4(word[0], word[1], word[2], word[3]);
  else if constexpr (BYTES == 8) *(uint2*)p = make_uint2(word[0], word[1]);
  else if constexpr (BYTES == 4) *(u32*)p = word[0];
  else *p = put(v[0]);
}

struct Item { idx pixel; int d; bool ok; };  // what a thread does: V channels of a pixel
DI Item item_of(i64 pixels, i64 channels) {
  const idx i = (idx)blockIdx.x * 256 + threadIdx.x, vectors = (idx)channels / V, pixel = i / vectors;
  return Item{pixel, (int)(i - pixel * vectors) * V, pixel < (idx)pixels};
}
