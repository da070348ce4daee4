// The machine of machine.cuh on a processor: every thread of a block is a fibre, which gives way wherever lanes must meet.
// Asynchronous copies happen when they are waited for, so that data used too early is found missing.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <vector>
typedef long long i64;
typedef unsigned int u32;
typedef unsigned short u16;
#define DI inline
#define UNROLL
#define __global__
#define __device__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
struct uint2 { u32 x, y; };
struct uint4 { u32 x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct Index { u32 x; };
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
static uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
static float __uint_as_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }
static u32 __float_as_uint(float x) { u32 y; memcpy(&y, &x, 4); return y; }

static float ex2(float x) { return exp2f(x); }
static float lg2(float x) { return log2f(x); }
static float rcp(float x) { return 1.f / x; }
static float rsqrtf(float x) { return 1.f / sqrtf(x); }
static float tanh_fast(float x) { return tanhf(x); }
static float low(u32 x) { return __uint_as_float(x << 16); }
static float high(u32 x) { return __uint_as_float(x & 0xffff0000u); }
static u16 to_bfloat16(float x) {
  u32 b = __float_as_uint(x);
  return (b & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (u16)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
}
static u32 pack(float a, float b) { return to_bfloat16(a) | (u32)to_bfloat16(b) << 16; }
static u32 mul_pairs(u32 a, u32 b) { return pack(low(a) * low(b), high(a) * high(b)); }
static u16 to_float16(float x) { _Float16 h = (_Float16)x; u16 r; memcpy(&r, &h, 2); return r; }
static float from_float16(u16 x) { _Float16 h; memcpy(&h, &x, 2); return (float)h; }
static u32 opaque(const u32* word) { return *word; }

alignas(16) char shared[256 * 1024];
static Index threadIdx, blockIdx;
struct Copy { void* to; const void* from; int bytes; };
struct Meeting { int size = 0, came = 0, phase = 0; };
struct Fibre {
  ucontext_t context;
  std::vector<char> stack;
  std::vector<Copy> copies;
  bool done;
};
static ucontext_t scheduler;
static std::vector<Fibre> fibres;
static std::vector<Meeting> warps;
static Meeting block;
static float given[2][64][32][6];  // [turn][warp][lane]: what lanes bring to a meeting

static void give_way() { swapcontext(&fibres[threadIdx.x].context, &scheduler); }
static void meet(Meeting& m) {
  const int phase = m.phase;
  if (++m.came == m.size) { m.came = 0; m.phase++; }
  while (m.phase == phase) give_way();
}
static void warp_sync() { meet(warps[threadIdx.x / 32]); }
static void block_sync() { meet(block); }
typedef float Hand[6];
static Hand* exchange(std::initializer_list<float> values) {
  const int w = threadIdx.x / 32, turn = warps[w].phase & 1;
  int i = 0;
  for (float v : values) given[turn][w][threadIdx.x % 32][i++] = v;
  warp_sync();
  return given[turn][w];
}
static float from_lane_xor(float x, int distance) { return exchange({x})[(threadIdx.x % 32) ^ distance][0]; }

static float matrix_a(const Hand* g, int row, int k, bool half) {  // the operand's place in lanes and registers
  const int lane = row % 8 * 4 + (half ? k % 8 / 2 : k % 4), reg = row / 8 + (half ? k / 8 : k / 4) * 2;
  const u32 word = __float_as_uint(g[lane][reg]);
  return half ? (k & 1 ? high(word) : low(word)) : __uint_as_float(word & 0xffffe000u);
}
static float matrix_b(const Hand* g, int k, int column, bool half) {
  const int lane = column * 4 + (half ? k % 8 / 2 : k % 4), reg = 4 + (half ? k / 8 : k / 4);
  const u32 word = __float_as_uint(g[lane][reg]);
  return half ? (k & 1 ? high(word) : low(word)) : __uint_as_float(word & 0xffffe000u);
}
static void multiply(float* c, const Hand* g, bool half) {
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < (half ? 16 : 8); k++) c[i] += matrix_a(g, row, k, half) * matrix_b(g, k, column, half);
  }
}
static void mma_bfloat16(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  multiply(c, exchange({__uint_as_float(a0), __uint_as_float(a1), __uint_as_float(a2), __uint_as_float(a3),
                        __uint_as_float(b0), __uint_as_float(b1)}), true);
}
static void mma_tf32(float* c, u32 a0, u32 a1, u32 a2, u32 a3, float b0, float b1) {
  multiply(c, exchange({__uint_as_float(a0), __uint_as_float(a1), __uint_as_float(a2), __uint_as_float(a3), b0, b1}), false);
}

static void mma_tf32_short(float* c, float a0, float a1, u32 b0) {
  const Hand* g = exchange({a0, a1, __uint_as_float(b0)});
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; i++) for (int k = 0; k < 4; k++) {
    const float a = __uint_as_float(__float_as_uint(g[lane / 4 * 4 + k][i / 2]) & 0xffffe000u);
    c[i] += a * g[(lane % 4 * 2 + i % 2) * 4 + k][2];
  }
}

static void check_aligned(const void* p, int bytes) { if ((uintptr_t)p % bytes) abort(); }
template <int BYTES> static void copy_async(void* to, const void* from, bool ok) {
  if (ok) check_aligned(from, BYTES);
  check_aligned(to, BYTES);
  if (BYTES == 2) { if (ok) memcpy(to, from, 2); else memset(to, 0, 2); return; }
  memset(to, 0xff, BYTES);
  fibres[threadIdx.x].copies.push_back({to, ok ? from : nullptr, BYTES});
}
static void copies_start() {}
static void copies_wait() {
  for (const Copy& c : fibres[threadIdx.x].copies) { if (c.from) memcpy(c.to, c.from, c.bytes); else memset(c.to, 0, c.bytes); }
  fibres[threadIdx.x].copies.clear();
}
static void gate_init(u32* gate, int count) { gate[0] = 0; gate[1] = count; gate[2] = 0; }
static void gate_pass(u32* gate) { if (++gate[0] == gate[1]) { gate[0] = 0; gate[2]++; } }
static void gate_wait(u32* gate, int parity) { while ((gate[2] & 1) == (u32)parity) give_way(); }

static void (*body)(const void*);
static const void* argument;
static void enter() { body(argument); fibres[threadIdx.x].done = true; give_way(); }
// Run a kernel block by block, threads in rising or falling order; shared memory starts as NaN.
static void run(void (*kernel)(const void*), const void* words, int grid, int threads, int falling) {
  body = kernel; argument = words;
  fibres.resize(threads); warps.resize((threads + 31) / 32);
  for (blockIdx.x = 0; (int)blockIdx.x < grid; blockIdx.x++) {
    memset(shared, 0xff, sizeof shared);
    for (Meeting& m : warps) { m = Meeting(); m.size = 32; }
    block = Meeting(); block.size = threads;
    for (Fibre& f : fibres) {
      f.stack.resize(128 * 1024); f.done = false;
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.data(); f.context.uc_stack.ss_size = f.stack.size(); f.context.uc_link = nullptr;
      makecontext(&f.context, enter, 0);
    }
    for (int left = threads; left;) for (int i = 0; i < threads; i++) {
      threadIdx.x = falling ? threads - 1 - i : i;
      Fibre& f = fibres[threadIdx.x];
      if (f.done) continue;
      swapcontext(&scheduler, &f.context);
      left -= f.done;
    }
  }
}
#define __ldg(p) (*(p))
