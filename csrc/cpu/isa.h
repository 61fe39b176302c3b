// Instruction sets of one build: a loop is written once, always_inline, and compiled into one function per level.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define WORLDENV_X86 1
#define WORLDENV_AVX2 __attribute__((target("avx2,fma")))
#define WORLDENV_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")))
#else
#define WORLDENV_X86 0
#endif
#define WORLDENV_INLINE inline __attribute__((always_inline))

namespace worldenv::cpu {

enum class Isa { kPlain, kAvx2, kAvx512 };

// The best level that this CPU has. WORLDENV_CPU_ISA=plain|avx2 lowers it (for tests), and is read once.
inline Isa isa() {
  static const Isa level = [] {
    Isa best = Isa::kPlain;
#if WORLDENV_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Isa::kAvx2;
    if (best == Isa::kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      best = Isa::kAvx512;
#endif
    const char* wanted = std::getenv("WORLDENV_CPU_ISA");
    if (wanted && !std::strcmp(wanted, "plain")) return Isa::kPlain;
    if (wanted && !std::strcmp(wanted, "avx2") && best == Isa::kAvx512) return Isa::kAvx2;
    return best;
  }();
  return level;
}

}  // namespace worldenv::cpu
