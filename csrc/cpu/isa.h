// Instruction sets of one build: a loop is written once, always_inline, and compiled into one function per level.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && defined(__GNUC__)
#define WORLDENV_X86 1
#define WORLDENV_AVX2 __attribute__((target("avx2,fma")))
#define WORLDENV_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")))
#else
#define WORLDENV_X86 0
#endif
#define WORLDENV_INLINE inline __attribute__((always_inline))
#define WORLDENV_INLINE_LAMBDA __attribute__((always_inline))

namespace worldenv::cpu {

enum class Isa { kPlain, kAvx2, kAvx512 };

// WORLDENV_CPU_ISA=plain|avx2|avx512, for tests: the highest level that may be taken, and without VNNI. Read once.
inline std::optional<Isa> highest_level() {
  static const std::optional<Isa> level = []() -> std::optional<Isa> {
    const char* given = std::getenv("WORLDENV_CPU_ISA");
    const std::string name = given ? given : "";
    if (name.empty()) return std::nullopt;
    if (name == "plain") return Isa::kPlain;
    if (name == "avx2") return Isa::kAvx2;
    if (name == "avx512") return Isa::kAvx512;
    throw std::runtime_error("WORLDENV_CPU_ISA is " + name + "; it should be plain, avx2 or avx512");
  }();
  return level;
}

// The best level that this CPU has.
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
    return std::min(best, highest_level().value_or(best));
  }();
  return level;
}

// Whether this CPU multiplies bytes with 8-bit weights by an instruction of its own, at that level.
inline bool has_dot() {
#if WORLDENV_X86
  static const bool wide = __builtin_cpu_supports("avx512vnni"), narrow = __builtin_cpu_supports("avxvnni");
  if (highest_level()) return false;
  return isa() == Isa::kAvx512 ? wide : isa() == Isa::kAvx2 && narrow;
#else
  return false;
#endif
}

}  // namespace worldenv::cpu
