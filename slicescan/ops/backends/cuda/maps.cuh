// Elements and places of maps. Set by the host: KIND (0 bfloat16, 1 float16, 2 float32), WIDE 64-bit offsets.
#if WIDE
typedef i64 idx;
#else
typedef int idx;
#endif
#if KIND == 2
typedef float T;
DI float get(T x) { return x; }
DI T put(float x) { return x; }
#else
typedef u16 T;
#if KIND == 1
DI float get(T x) { return from_float16(x); }
DI T put(float x) { return to_float16(x); }
#else
DI float get(T x) { return low(x); }
DI T put(float x) { return to_bfloat16(x); }
#endif
#endif
constexpr int ES = sizeof(T);
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

// A map (batch, slice, step, channel); strides in elements.
struct Map { char* at; i64 b, s, t, d; };

DI float sigmoid(float x) { return rcp(1.f + ex2(-x * LOG2E)); }
