// What the scan needs from the machine: every special instruction has one small function here, and no header is included.
typedef long long i64;
typedef unsigned int u32;
typedef unsigned short u16;
#define DI __device__ __forceinline__
#define UNROLL _Pragma("unroll")

DI float ex2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DI float lg2(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DI float rcp(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DI float tanh_fast(float x) { float y; asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

// Pairs of bfloat16 in one word: low half first.
DI float low(u32 x) { return __uint_as_float(x << 16); }
DI float high(u32 x) { return __uint_as_float(x & 0xffff0000u); }
DI u32 pack(float a, float b) { u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a)); return r; }
DI u32 mul_pairs(u32 a, u32 b) {
  u32 r; asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(0x80008000u)); return r;
}
DI u16 to_bfloat16(float x) { u16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
DI u16 to_float16(float x) { u16 r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
DI float from_float16(u16 x) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x)); return r; }

DI u32 address_of(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Copy BYTES from global to shared memory, or write zeros where `ok` is false. Complete after copies_wait().
template <int BYTES> DI void copy_async(void* to, const void* from, bool ok) {
  const int n = ok ? BYTES : 0;
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address_of(to)), "l"(from), "r"(n) : "memory");
  else if constexpr (BYTES == 8)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(address_of(to)), "l"(from), "r"(n) : "memory");
  else if constexpr (BYTES == 4)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address_of(to)), "l"(from), "r"(n) : "memory");
  else
    *(u16*)to = ok ? __ldg((const u16*)from) : (u16)0;
}
DI void copies_start() { asm volatile("cp.async.commit_group;" ::: "memory"); }
DI void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

DI void warp_sync() { __syncwarp(); }
DI void block_sync() { __syncthreads(); }
DI float from_lane_xor(float x, int distance) { return __shfl_xor_sync(0xffffffffu, x, distance); }

// One instruction of the tensor cores: c += a b, with a (16 x k) and b (k x 8) spread over the warp.
DI void mma_bfloat16(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DI void mma_tf32(float* c, u32 a0, u32 a1, u32 a2, u32 a3, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
DI void mma_tf32_short(float* c, float a0, float a1, u32 b0) {  // k = 4
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(b0));
}
// A word of shared memory, read in a way that no compiler can see through.
DI u32 opaque(const u32* word) {
  u32 x; asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(x) : "r"(address_of(word)) : "memory");
  return x;
}

// A gate that opens when `count` warps have passed it; its phases alternate in parity.
DI void gate_init(u32* gate, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address_of(gate)), "r"(count) : "memory");
}
DI void gate_pass(u32* gate) {
  asm volatile("{ .reg .b64 s; mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(address_of(gate)) : "memory");
}
DI void gate_wait(u32* gate, int parity) {
#if __CUDA_ARCH__ >= 900
  u32 open = 0;
  while (!open)
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(open) : "r"(address_of(gate)), "r"(parity) : "memory");
#elif __CUDA_ARCH__ >= 800
  u32 open = 0;
  while (!open)
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(open) : "r"(address_of(gate)), "r"(parity) : "memory");
#endif
}
