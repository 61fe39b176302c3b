// What kernels need beyond C++: one function for each PTX instruction, on shared addresses of 32 bits. With
// WORLDENV_EMULATE they come from tests/kernels/emulator.h instead, and the same kernels run on a CPU.
#pragma once

#include <cstdint>

namespace worldenv::cuda {

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
struct alignas(16) Vec16 {
  uint32_t word[4];
};
struct alignas(8) Vec8 {
  uint32_t word[2];
};
using Shared = uint32_t;

constexpr int kWarp = 32;

}  // namespace worldenv::cuda

#ifdef WORLDENV_EMULATE
#include "emulator.h"
#else

#define WORLDENV_DEVICE __device__ __forceinline__

namespace worldenv::cuda {

extern __shared__ __align__(1024) unsigned char dynamic_shared[];

WORLDENV_DEVICE Shared shared_start() { return static_cast<Shared>(__cvta_generic_to_shared(dynamic_shared)); }

// Two numbers in 32 bits, the first in the lower half.
template <typename T>
WORLDENV_DEVICE uint32_t pack(float first, float second);

template <>
WORLDENV_DEVICE uint32_t pack<Bf16>(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

template <>
WORLDENV_DEVICE uint32_t pack<Half>(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

template <typename T>
WORLDENV_DEVICE void unpack(uint32_t pair, float& first, float& second);

template <>
WORLDENV_DEVICE void unpack<Bf16>(uint32_t pair, float& first, float& second) {
  first = __uint_as_float(pair << 16);
  second = __uint_as_float(pair & 0xffff0000u);
}

template <>
WORLDENV_DEVICE void unpack<Half>(uint32_t pair, float& first, float& second) {
  asm("{.reg .b16 a, b;\n mov.b32 {a, b}, %2;\n cvt.f32.f16 %0, a;\n cvt.f32.f16 %1, b;}"
      : "=f"(first), "=f"(second)
      : "r"(pair));
}

// Byte i of the result is byte (selector >> 4 i) & 7 of the eight bytes of b:a.
WORLDENV_DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}

// a + b, of pairs.
template <typename T>
WORLDENV_DEVICE uint32_t add_pair(uint32_t a, uint32_t b);

template <>
WORLDENV_DEVICE uint32_t add_pair<Bf16>(uint32_t a, uint32_t b) {
  uint32_t sum;  // sm_80 has no addition of bf16 pairs
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
  return sum;
}

template <>
WORLDENV_DEVICE uint32_t add_pair<Half>(uint32_t a, uint32_t b) {
  uint32_t sum;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  return sum;
}

WORLDENV_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// As fmaxf, but not a number if one of them is not.
WORLDENV_DEVICE float max_nan(float a, float b) {
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
  return most;
}

// Rounded by itself: the compiler makes no fused multiply-add of it.
WORLDENV_DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }

WORLDENV_DEVICE float shuffle_xor(float x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }

WORLDENV_DEVICE void sync_warp() { __syncwarp(); }

WORLDENV_DEVICE void sync_block() { __syncthreads(); }

WORLDENV_DEVICE void store_shared(Shared to, uint32_t x) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(x) : "memory");
}

WORLDENV_DEVICE void store_shared(Shared to, const Vec16& x) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.word[0]), "r"(x.word[1]), "r"(x.word[2]),
               "r"(x.word[3])
               : "memory");
}

WORLDENV_DEVICE Vec16 load_shared16(Shared from) {
  Vec16 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.word[0]), "=r"(x.word[1]), "=r"(x.word[2]), "=r"(x.word[3])
               : "r"(from)
               : "memory");
  return x;
}

WORLDENV_DEVICE void load_shared_floats(Shared from, float& first, float& second) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(first), "=f"(second) : "r"(from) : "memory");
}

// Copies 16 bytes, or writes zeros where nothing is there; done after the wait for its group.
WORLDENV_DEVICE void copy16(Shared to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
               : "memory");
}

WORLDENV_DEVICE void copy4(Shared to, const void* from, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
               "r"(there ? 4 : 0)
               : "memory");
}

WORLDENV_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all but the newest `Groups` groups of this thread's copies.
template <int Groups>
WORLDENV_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}

// Four matrices of 8 x 8 x 16 bits: lane i gives the address of row i mod 8 of matrix i / 8, and gets of each the
// pair (row lane / 4, columns 2 (lane mod 4) and the next).
WORLDENV_DEVICE void load_matrices(uint32_t (&x)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(row)
               : "memory");
}

// The same of their transposes: rows 2 (lane mod 4) and the next, column lane / 4.
WORLDENV_DEVICE void load_matrices_transposed(uint32_t (&x)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(row)
               : "memory");
}

// d += a b, of 16 x 16 and 16 x 8.
template <typename T>
WORLDENV_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

#define WORLDENV_MMA(T, NAME)                                                                                       \
  template <>                                                                                                       \
  WORLDENV_DEVICE void multiply_add<T>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {           \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME                                                      \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                      \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                            \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                            \
  }
WORLDENV_MMA(Bf16, "bf16")
WORLDENV_MMA(Half, "f16")
#undef WORLDENV_MMA

}  // namespace worldenv::cuda

#endif
