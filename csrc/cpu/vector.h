// A vector register of floats, in whose terms the CPU faces are written once for every instruction set.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "isa.h"

namespace worldenv::cpu {

template <int Width>
struct Native;
#define WORLDENV_NATIVE(width)                                       \
  template <>                                                        \
  struct Native<width> {                                             \
    typedef float Floats __attribute__((vector_size(4 * width)));    \
    typedef int32_t Ints __attribute__((vector_size(4 * width)));    \
    typedef uint32_t Words __attribute__((vector_size(4 * width)));  \
    typedef double Pairs __attribute__((vector_size(4 * width)));    \
    typedef uint16_t Halves __attribute__((vector_size(2 * width))); \
    typedef int16_t Shorts __attribute__((vector_size(2 * width)));  \
    typedef uint8_t Bytes __attribute__((vector_size(width)));       \
    typedef int8_t Levels __attribute__((vector_size(width)));       \
  };
WORLDENV_NATIVE(4)
WORLDENV_NATIVE(8)
WORLDENV_NATIVE(16)
#undef WORLDENV_NATIVE

// f(0), f(1), .. with constants: an array that is indexed by constants alone stays in registers.
template <typename Function, int... I>
WORLDENV_INLINE void each(std::integer_sequence<int, I...>, Function f) {
  (f(std::integral_constant<int, I>{}), ...);
}
#define WORLDENV_EACH(i, count) each(std::make_integer_sequence<int, count>{}, [&](auto i) WORLDENV_INLINE_LAMBDA

// Numbers of 16 bits: stored so, computed with as floats.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <int Width>
struct Vector {
  using Floats = typename Native<Width>::Floats;
  using Ints = typename Native<Width>::Ints;
  using Words = typename Native<Width>::Words;
  using Halves = typename Native<Width>::Halves;
  Floats v{};

  static WORLDENV_INLINE int32_t first(int64_t lanes) { return (1 << lanes) - 1; }  // a mask

  // x, or the bound beyond which it lies; NaN stays NaN.
  static WORLDENV_INLINE Floats between(Floats x, Floats low, Floats high) {
#if WORLDENV_X86
    if (Width == 16) {
      asm("vmaxps %0, %1, %0\n\tvminps %0, %2, %0" : "+v"(x) : "v"(low), "v"(high));
      return x;
    }
#endif
    x = x < low ? low : x;
    return x > high ? high : x;
  }

  WORLDENV_INLINE void fill(float value) { v = Floats{} + value; }

  WORLDENV_INLINE void load(const float* from) { __builtin_memcpy(&v, from, sizeof(v)); }

  // The first `lanes` of them; zeros after that.
  WORLDENV_INLINE void load(const float* from, int64_t lanes) {
    if (lanes >= Width) {
      load(from);
#if WORLDENV_X86
    } else if (Width == 16) {
      asm("kmovw %2, %%k1\n\tvmovups %1, %0%{%%k1%}%{z%}"
          : "=v"(v) : "m"(*reinterpret_cast<const float(*)[Width]>(from)), "r"(first(lanes)) : "k1");
#endif
    } else {
      for (int64_t l = 0; l < Width; ++l) v[l] = l < lanes ? from[l] : 0.0f;
    }
  }

  WORLDENV_INLINE void store(float* to) const { __builtin_memcpy(to, &v, sizeof(v)); }

  WORLDENV_INLINE void store(float* to, int64_t lanes) const {
    if (lanes >= Width) {
      store(to);
#if WORLDENV_X86
    } else if (Width == 16) {
      asm("kmovw %2, %%k1\n\tvmovups %1, %0%{%%k1%}"
          : "+m"(*reinterpret_cast<float(*)[Width]>(to)) : "v"(v), "r"(first(lanes)) : "k1");
#endif
    } else {
      for (int64_t l = 0; l < lanes; ++l) to[l] = v[l];
    }
  }

  // As above, of numbers in 16 bits and of whole ones in 8.
  template <class Stored>
  WORLDENV_INLINE void load(const Stored* from, int64_t lanes = Width) {
    constexpr bool kLevels = sizeof(Stored) == 1;
#if WORLDENV_X86
    if constexpr (Width == 16 && !kLevels) {  // in one instruction, where the compiler takes four
      const auto& all = *reinterpret_cast<const uint16_t(*)[Width]>(from);
      Words bits;
      if (lanes >= Width) asm("vpmovzxwd %1, %0" : "=v"(bits) : "m"(all));
      else asm("kmovw %2, %%k1\n\tvpmovzxwd %1, %0%{%%k1%}%{z%}" : "=v"(bits) : "m"(all), "r"(first(lanes)) : "k1");
      return widen(Stored{}, bits);
    }
#endif
    using Raw = std::conditional_t<kLevels, typename Native<Width>::Levels, Halves>;
    Raw raw{};
    if (lanes >= Width) __builtin_memcpy(&raw, from, sizeof(raw));
    else __builtin_memcpy(&raw, from, lanes * sizeof(Stored));
    if constexpr (kLevels) {  // by way of 16 bits, or it is done number by number
      const auto shorts = __builtin_convertvector(raw, typename Native<Width>::Shorts);
      v = __builtin_convertvector(__builtin_convertvector(shorts, Ints), Floats);
    } else {
      widen(Stored{}, __builtin_convertvector(raw, Words));
    }
  }

  template <class Stored>
  WORLDENV_INLINE void store(Stored* to, int64_t lanes = Width) const {
    Words bits;
    narrow(Stored{}, bits);
#if WORLDENV_X86
    if (Width == 16) {
      auto& all = *reinterpret_cast<uint16_t(*)[Width]>(to);
      if (lanes >= Width) asm("vpmovdw %1, %0" : "=m"(all) : "v"(bits));
      else asm("kmovw %2, %%k1\n\tvpmovdw %1, %0%{%%k1%}" : "+m"(all) : "v"(bits), "r"(first(lanes)) : "k1");
      return;
    }
#endif
    const Halves raw = __builtin_convertvector(bits, Halves);
    if (lanes >= Width) __builtin_memcpy(to, &raw, sizeof(raw));
    else __builtin_memcpy(to, &raw, lanes * sizeof(Stored));
  }

  // The nearest whole numbers, which lie in [-127, 127]; ties to even.
  WORLDENV_INLINE void store_whole(int8_t* to, int64_t lanes) const {
    const auto shorts = __builtin_convertvector((Ints)(v + 12582912.0f), typename Native<Width>::Shorts);
    const auto raw = __builtin_convertvector(shorts, typename Native<Width>::Levels);
    if (lanes >= Width) __builtin_memcpy(to, &raw, sizeof(raw));
    else __builtin_memcpy(to, &raw, lanes);
  }

  WORLDENV_INLINE void widen(BFloat16, const Words& bits) { v = (Floats)(bits << 16); }

  // Exponent and mantissa move into place; 2^112 corrects the bias, and makes a number below 2^-14 a normal one.
  WORLDENV_INLINE void widen(Float16, const Words& bits) {
    const Words size = (bits & 0x7fffu) << 13;
    const Floats value = (Floats)size * 0x1p112f;
    const Words whole = size >= (0x7c00u << 13) ? size | 0x7f800000u : (Words)value;  // infinite, or not a number
    v = (Floats)(whole | (bits & 0x8000u) << 16);
  }

  // To the nearest, ties to even.
  WORLDENV_INLINE void narrow(BFloat16, Words& out) const {
    const Words bits = (Words)v, rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    out = (bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded;
  }

  WORLDENV_INLINE void narrow(Float16, Words& out) const {
    const Words bits = (Words)v, sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    const Words normal = (size - (112u << 23) + 0xfffu + (size >> 13 & 1)) >> 13;
    const Words tiny = (Words)((Floats)size + 0.5f) - 0x3f000000u;  // the sum has an ulp of 2^-24, that of float16
    out = size < 0x38800000u ? tiny : normal;                       // 2^-14, the least normal one
    out = size >= 0x477ff000u ? Words{} + 0x7c00u : out;            // 65520 and more are infinite
    out = size > 0x7f800000u ? Words{} + 0x7e00u : out;
    out |= sign;
  }

  // The nearest of 256 levels, the first `lanes` of them: clamp(round(v / step) + zero, 0, 255), NaN being 0.
  WORLDENV_INLINE void store_levels(uint8_t* to, int64_t lanes, float inverse_step, float zero) const {
    Floats x = v == v ? v * inverse_step : Floats{};
#if WORLDENV_X86
    if (Width == 16) {
      const Ints origin = Ints{} + int32_t(zero), nothing{};
      const Floats most = Floats{} + 1024.0f;
      Ints level;
      asm("vminps %2, %1, %0\n\tvcvtps2dq %0, %0\n\tvpaddd %3, %0, %0\n\tvpmaxsd %4, %0, %0"
          : "=&v"(level) : "v"(x), "v"(most), "v"(origin), "v"(nothing));
      if (lanes >= Width) {
        asm("vpmovusdb %1, %0" : "=m"(*reinterpret_cast<uint8_t(*)[Width]>(to)) : "v"(level));
      } else {
        asm("kmovw %2, %%k1\n\tvpmovusdb %1, %0%{%%k1%}"
            : "+m"(*reinterpret_cast<uint8_t(*)[Width]>(to)) : "v"(level), "r"(first(lanes)) : "k1");
      }
      return;
    }
#endif
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits for a fraction
    x = between(x, Floats{} - zero, Floats{} + (255.0f - zero));
    x = (x + round) - round + zero;
    const auto shorts = __builtin_convertvector(__builtin_convertvector(x, Ints), typename Native<Width>::Shorts);
    const auto bytes = __builtin_convertvector(shorts, typename Native<Width>::Bytes);
    if (lanes >= Width) __builtin_memcpy(to, &bytes, Width);
    else for (int64_t l = 0; l < lanes; ++l) to[l] = bytes[l];
  }

  // v <- exp(v), relative error 2e-7 in [-87, 87], clamped to its ends: 2^n by the exponent bits, the rest by a
  // polynomial.
  WORLDENV_INLINE void exponential() {
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits for a fraction
    const Floats x = between(v, Floats{} - 87.0f, Floats{} + 87.0f);
    const Floats n = (x * 1.44269504f + round) - round;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    v = p * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
  }

  // v <- 2^v, relative error 3e-7 for v in [-126, 126], clamped below.
  WORLDENV_INLINE void power_of_two() {
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits for a fraction
    const Floats x = v < -126.0f ? Floats{} - 126.0f : v;
    const Floats shifted = x + round, r = x - (shifted - round);
    Floats p = r * 1.3276481722e-3f + 9.6755463301e-3f;
    p = p * r + 5.5507132896e-2f;
    p = p * r + 2.4022119633e-1f;
    p = p * r + 6.9314696703e-1f;
    p = p * r + 1.0f;
    v = (Floats)((Words)p + ((Words)shifted << 23));  // the lowest bits of `shifted` are the whole number
  }

  // v <- log(v) for positive normal numbers, relative error 1e-7: exponent and mantissa, the latter in [sqrt(1/2),
  // sqrt(2)), by a polynomial.
  WORLDENV_INLINE void logarithm() {
    const Ints bits = (Ints)v - 0x3f3504f3;  // sqrt(1/2)
    const Floats n = __builtin_convertvector(bits >> 23, Floats);
    const Floats x = (Floats)((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
    Floats p = x * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * x + 1.1676998740e-1f;
    p = p * x - 1.2420140846e-1f;
    p = p * x + 1.4249322787e-1f;
    p = p * x - 1.6668057665e-1f;
    p = p * x + 2.0000714765e-1f;
    p = p * x - 2.4999993993e-1f;
    p = p * x + 3.3333331174e-1f;
    v = (p * x - 0.5f) * x * x + n * -2.12194440e-4f + x + n * 0.693359375f;
  }

  // v <- 1 / v, relative error 1e-7: a division takes as long as ten products.
  WORLDENV_INLINE void reciprocal() {
#if WORLDENV_X86
    if (Width == 16) {
      Floats near;
      asm("vrcp14ps %1, %0" : "=v"(near) : "v"(v));
      v = near * (2.0f - v * near);
      return;
    }
#endif
    v = 1.0f / v;
  }

  // v <- 1 / (1 + 2^v), relative error 1e-4 with 16 lanes and 2e-7 else: what goes onto a grid need not be better.
  WORLDENV_INLINE void gate() {
#if WORLDENV_X86
    if (Width == 16) {
      Floats rest, p, power;
      asm("vreduceps $0, %1, %0" : "=v"(rest) : "v"(v));  // from the nearest whole number
      p = rest * 9.5700990e-3f + 5.5917860e-2f;
      p = p * rest + 2.4024745e-1f;
      p = p * rest + 6.9312181e-1f;
      p = p * rest + 1.0f;
      asm("vscalefps %2, %1, %0" : "=v"(power) : "v"(p), "v"(v - rest));
      asm("vrcp14ps %1, %0" : "=v"(v) : "v"(power + 1.0f));
      return;
    }
#endif
    v *= 0.69314718056f;
    exponential();
    v = 1.0f / (v + 1.0f);
  }

  // v <- v / (1 + exp(-v))
  WORLDENV_INLINE void silu() {
    Vector e;
    e.v = -v;
    e.exponential();
    e.v += 1.0f;
    e.reciprocal();
    v *= e.v;
  }

  // The same for a grid.
  WORLDENV_INLINE void silu_for_levels() {
    Vector e;
    e.v = v * -1.44269504089f;
    e.gate();
    v *= e.v;
  }

  // v <- v / (1 + exp(-2 sqrt(2 / pi) (v + 0.044715 v^3))), GELU by its tanh formula, for a grid
  WORLDENV_INLINE void gelu_for_levels() {
    Vector e;
    e.v = v * (v * v * -0.10294324f - 2.3022082f);  // 2 sqrt(2 / pi) / log(2)
    e.gate();
    v *= e.v;
  }

  // The sum of all lanes.
  WORLDENV_INLINE float add_up() const {
    Native<4>::Floats four{};
#pragma GCC unroll 4
    for (int64_t l = 0; l < Width; l += 4) {
      Native<4>::Floats part;
      __builtin_memcpy(&part, reinterpret_cast<const float*>(&v) + l, sizeof(part));
      four += part;
    }
    return (four[0] + four[1]) + (four[2] + four[3]);
  }

  WORLDENV_INLINE void square_root() {
#if WORLDENV_X86
    if (Width == 16) {
      asm("vsqrtps %0, %0" : "+v"(v));
      return;
    }
#endif
    for (int64_t l = 0; l < Width; ++l) v[l] = __builtin_sqrtf(v[l]);
  }

  // cosine and sine of v turns, v in [0, 1), error 1e-7: the nearest quarter exactly, the rest by polynomials.
  WORLDENV_INLINE void turn(Vector& cosine, Vector& sine) const {
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits for a fraction
    const Floats quarters = v * 4.0f, nearest = (quarters + round) - round;
    after_quarters(nearest, (quarters - nearest) * 1.57079632679f, cosine, sine);
  }

  // cosine and sine of v radians, |v| < 1e5, error 1e-7: quarters are taken off in three parts of few bits.
  WORLDENV_INLINE void angle(Vector& cosine, Vector& sine) const {
    const float round = 12582912.0f;
    const Floats nearest = (v * 0.636619772f + round) - round;
    const Floats rest = ((v - nearest * 1.5703125f) - nearest * 4.8375129699707e-4f) - nearest * 7.549789948768648e-8f;
    after_quarters(nearest, rest, cosine, sine);
  }

  // x: radians in [-pi / 4, pi / 4], after so many quarters of a turn.
  static WORLDENV_INLINE void after_quarters(const Floats& quarters, const Floats& x, Vector& cosine, Vector& sine) {
    const Floats xx = x * x;
    const Ints quarter = __builtin_convertvector(quarters, Ints);
    const Floats s = ((xx * -1.9515295891e-4f + 8.3321608736e-3f) * xx - 1.6666654611e-1f) * xx * x + x;
    const Floats c = ((xx * 2.443315711809948e-5f - 1.388731625493765e-3f) * xx + 4.166664568298827e-2f) * xx * xx -
                     0.5f * xx + 1.0f;
    const Ints odd = (quarter & 1) != 0, minus_c = ((quarter + 1) & 2) != 0, minus_s = (quarter & 2) != 0;
    cosine.v = odd ? s : c;
    sine.v = odd ? c : s;
    cosine.v = minus_c ? -cosine.v : cosine.v;
    sine.v = minus_s ? -sine.v : sine.v;
  }

  // Zeros after the first `lanes`.
  WORLDENV_INLINE void keep(int64_t lanes) {
    if (lanes >= Width) return;
    Ints place{};
    for (int l = 0; l < Width; ++l) place[l] = l;
    v = place < int32_t(lanes) ? v : Floats{};
  }

  WORLDENV_INLINE float greatest() const {
    float most = v[0];
    for (int64_t l = 1; l < Width; ++l) most = v[l] > most ? v[l] : most;
    return most;
  }

  WORLDENV_INLINE bool all_zero() const {
#if WORLDENV_X86
    if (Width == 16) {
      int32_t any;
      const Floats nothing{};
      asm("vcmpneqps %2, %1, %%k1\n\tkmovw %%k1, %0" : "=r"(any) : "v"(v), "v"(nothing) : "k1");
      return any == 0;
    }
#endif
    const Ints bits = v != 0.0f;
    int32_t any = 0;
    for (int64_t l = 0; l < Width; ++l) any |= bits[l];
    return any == 0;
  }
};

}  // namespace worldenv::cpu
