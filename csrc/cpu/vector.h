// A vector register of floats, in whose terms the CPU faces are written once for every instruction set.
#pragma once

#include <cstdint>
#include <limits>

#include "isa.h"

namespace worldenv::cpu {

template <int Width>
struct Native;
#define WORLDENV_NATIVE(width)                                    \
  template <>                                                     \
  struct Native<width> {                                          \
    typedef float Floats __attribute__((vector_size(4 * width))); \
    typedef int32_t Ints __attribute__((vector_size(4 * width))); \
    typedef double Pairs __attribute__((vector_size(4 * width))); \
  };
WORLDENV_NATIVE(4)
WORLDENV_NATIVE(8)
WORLDENV_NATIVE(16)
#undef WORLDENV_NATIVE

template <int Width>
struct Vector {
  using Floats = typename Native<Width>::Floats;
  using Ints = typename Native<Width>::Ints;
  Floats v{};

  WORLDENV_INLINE void fill(float value) { v = Floats{} + value; }

  WORLDENV_INLINE void load(const float* from) { __builtin_memcpy(&v, from, sizeof(v)); }

  // The first `lanes` of them; zeros after that.
  WORLDENV_INLINE void load(const float* from, int64_t lanes) {
    if (lanes >= Width) {
      load(from);
    } else {
      for (int64_t l = 0; l < Width; ++l) v[l] = l < lanes ? from[l] : 0.0f;
    }
  }

  WORLDENV_INLINE void store(float* to) const { __builtin_memcpy(to, &v, sizeof(v)); }

  WORLDENV_INLINE void store(float* to, int64_t lanes) const {
    if (lanes >= Width) {
      store(to);
    } else {
      for (int64_t l = 0; l < lanes; ++l) to[l] = v[l];
    }
  }

  // v <- exp(v), relative error 2e-7 in [-87, 87], clamped to its ends: 2^n by the exponent bits, the rest by a
  // polynomial.
  WORLDENV_INLINE void exponential() {
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits for a fraction
    Floats x = v < -87.0f ? Floats{} - 87.0f : v;
    x = x > 87.0f ? Floats{} + 87.0f : x;
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

  WORLDENV_INLINE bool all_zero() const {
    const Ints bits = v != 0.0f;
    int32_t any = 0;
    for (int64_t l = 0; l < Width; ++l) any |= bits[l];
    return any == 0;
  }
};

}  // namespace worldenv::cpu
