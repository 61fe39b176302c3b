// Instructions of Hopper (sm_90a): matrix units that read shared memory, memory barriers, registers that move between
// warpgroups. As ptx.h, one function for each.
#pragma once

#include "ptx.h"

#ifdef WORLDENV_EMULATE
#define WORLDENV_HOPPER 1
#include "emulated_ptx_sm90.h"
#else
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WORLDENV_HOPPER 1
#else
#define WORLDENV_HOPPER 0
#endif

namespace worldenv::cuda {

// Threads of a part of the block meet at one of the barriers 1 to 15.
WORLDENV_DEVICE void sync_some(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

WORLDENV_DEVICE void barrier_init(Shared barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

WORLDENV_DEVICE void barrier_arrive(Shared barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Waits until the barrier's phase of this parity is over; of a new barrier, phase 1 is.
WORLDENV_DEVICE void barrier_wait(Shared barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred over;\n"
      "again:\n mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@!over bra again;}" ::"r"(barrier), "r"(parity)
      : "memory");
}

// What this thread wrote to shared memory is there for the matrix units, once it has met their threads.
WORLDENV_DEVICE void fence_for_matrix_units() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int Count>
WORLDENV_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

template <int Count>
WORLDENV_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

WORLDENV_DEVICE void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

WORLDENV_DEVICE void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int Groups>
WORLDENV_DEVICE void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Groups) : "memory");
}

// No use of these registers moves across: the compiler does not know that matrix units write them later.
template <int N>
WORLDENV_DEVICE void hold(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

template <int N>
WORLDENV_DEVICE void hold(uint32_t (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

#define WORLDENV_OUT8(I)                                                                                           \
  "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3]), "+f"(d[I + 4]), "+f"(d[I + 5]), "+f"(d[I + 6]),      \
      "+f"(d[I + 7])
#define WORLDENV_OUT32(I) WORLDENV_OUT8(I), WORLDENV_OUT8(I + 8), WORLDENV_OUT8(I + 16), WORLDENV_OUT8(I + 24)
#define WORLDENV_NAMES32                                                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define WORLDENV_NAMES64                                                                                           \
  WORLDENV_NAMES32                                                                                                 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "    \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d = a b, or d += a b: 64 x 16, rows in shared memory, times 16 x 128, whose columns are rows in shared memory.
template <typename T>
WORLDENV_DEVICE void warpgroup_multiply(float (&d)[64], uint64_t a, uint64_t b, bool accumulate);

// d += a b: 64 x 16, in registers, times 16 x N, rows in shared memory; N = 128 or 64.
template <typename T>
WORLDENV_DEVICE void warpgroup_multiply_add(float (&d)[64], const uint32_t* a, uint64_t b);
template <typename T>
WORLDENV_DEVICE void warpgroup_multiply_add(float (&d)[32], const uint32_t* a, uint64_t b);

#define WORLDENV_WGMMA(T, NAME)                                                                                    \
  template <>                                                                                                      \
  WORLDENV_DEVICE void warpgroup_multiply<T>(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {            \
    asm volatile("{.reg .pred p;\n setp.ne.b32 p, %66, 0;\n"                                                       \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {" WORLDENV_NAMES64                \
                 "}, %64, %65, p, 1, 1, 0, 0;}"                                                                    \
                 : WORLDENV_OUT32(0), WORLDENV_OUT32(32)                                                           \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                             \
  }                                                                                                                \
  template <>                                                                                                      \
  WORLDENV_DEVICE void warpgroup_multiply_add<T>(float (&d)[64], const uint32_t* a, uint64_t b) {                  \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {" WORLDENV_NAMES64                \
                 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                                       \
                 : WORLDENV_OUT32(0), WORLDENV_OUT32(32)                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                            \
  }                                                                                                                \
  template <>                                                                                                      \
  WORLDENV_DEVICE void warpgroup_multiply_add<T>(float (&d)[32], const uint32_t* a, uint64_t b) {                  \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " {" WORLDENV_NAMES32                 \
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                                       \
                 : WORLDENV_OUT32(0)                                                                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                            \
  }
WORLDENV_WGMMA(Bf16, "bf16")
WORLDENV_WGMMA(Half, "f16")
#undef WORLDENV_WGMMA
#undef WORLDENV_NAMES64
#undef WORLDENV_NAMES32
#undef WORLDENV_OUT32
#undef WORLDENV_OUT8

}  // namespace worldenv::cuda

#endif
