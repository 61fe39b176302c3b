// Layer normalisation with a gate before and a condition after it; worldenv/ops/adaln.py says what it means.
// A row of D numbers is summed, normalised and written while it is in the cache.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "vector.h"

namespace worldenv::cpu {

constexpr float kEps = 1e-5f;

// Pointers of one episode; branch, gate, and what is not wanted, are null.
template <class T>
struct Forward {
  const T *x, *scale, *shift, *branch, *gate;  // [N, D], [D], [D], [N, D], [D]
  T* sum;                                      // [N, D], x + gate * branch
  void* y;                                     // [N, D] T, or uint8_t on a grid
  int64_t rows, width;
  float step, zero;
  float* room = nullptr;  // [D], for a row of numbers that are not floats
};

// Mean and inverse standard deviation of a row.
template <int Width>
WORLDENV_INLINE void moments(const float* row, int64_t width, float& mean, float& inverse) {
  Vector<Width> total, square, value;
  for (int64_t c = 0; c < width; c += Width) {
    value.load(row + c, width - c);
    total.v += value.v;
  }
  mean = total.add_up() / float(width);
  for (int64_t c = 0; c < width; c += Width) {
    value.load(row + c, width - c);
    value.v -= mean;
    value.keep(width - c);
    square.v += value.v * value.v;
  }
  inverse = 1.0f / std::sqrt(square.add_up() / float(width) + kEps);
}

// x + gate * branch of a row, or x, as floats; the sum is stored, rounded.
template <int Width, class T>
WORLDENV_INLINE const float* sum_row(const Forward<T>& f, int64_t at) {
  constexpr bool kFloats = std::is_same_v<T, float>;
  if constexpr (kFloats)
    if (!f.branch) return f.x + at;
  Vector<Width> value, a, b;
  for (int64_t c = 0; c < f.width; c += Width) {
    const int64_t lanes = f.width - c;
    value.load(f.x + at + c, lanes);
    if (f.branch) {
      a.load(f.branch + at + c, lanes);
      b.load(f.gate + c, lanes);
      value.v += a.v * b.v;
      value.store(f.sum + at + c, lanes);
    }
    if (!kFloats) value.store(f.room + c, lanes);
  }
  if constexpr (kFloats) return f.sum + at;
  return f.room;
}

template <int Width, class T = float>
WORLDENV_INLINE void forward(const Forward<T>& f) {
  Vector<Width> value, a, b;
  const float inverse_step = f.step ? 1.0f / f.step : 0.0f;
  for (int64_t n = 0, at = 0; n < f.rows; ++n, at += f.width) {
    const float* row = sum_row<Width>(f, at);
    float mean, inverse;
    moments<Width>(row, f.width, mean, inverse);
    for (int64_t c = 0; c < f.width; c += Width) {
      const int64_t lanes = f.width - c;
      value.load(row + c, lanes);
      a.load(f.scale + c, lanes);
      b.load(f.shift + c, lanes);
      value.v = (value.v - mean) * inverse * (1.0f + a.v) + b.v;
      if (f.step) value.store_levels(static_cast<uint8_t*>(f.y) + at + c, lanes, inverse_step, f.zero);
      else value.store(static_cast<T*>(f.y) + at + c, lanes);
    }
  }
}

}  // namespace worldenv::cpu
