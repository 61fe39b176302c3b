// Group normalisation, scale, shift and activation of one episode; worldenv/ops/adagn.py says what it means.
// Channels last: every number of a line belongs to the channel of its place, and channels return with a period that is
// a whole number of vectors. Sums over all lines first; then normalisation, scale and shift have become a factor and a
// summand of each channel.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "vector.h"

namespace worldenv::cpu {

enum class Activation { kNone, kRelu, kSilu };

struct Norm {
  int64_t lines, positions, channels, groups;  // positions of a line
  float eps;
  Activation activation;
  float step, zero;  // of the grid of the result; step 0: none
  int64_t pitch;     // numbers from one line of the result to the next

  int64_t line() const { return positions * channels; }
  int64_t period(int64_t width) const { return std::lcm(channels, width); }
};

// Pointers of one episode.
struct Condition {
  const float *weight, *bias;  // [C]
  const float *scale, *shift;  // [C] or null
};

template <int Width, Activation kActivation, bool kGrid>
WORLDENV_INLINE void activate(const float* x, const float* factor, const float* summand, void* y, const Norm& norm) {
  const int64_t line = norm.line(), period = norm.period(Width);
  const float inverse = kGrid ? 1.0f / norm.step : 0.0f, zero = norm.zero;
  Vector<Width> value, a, b;
  for (int64_t row = 0; row < norm.lines; ++row, x += line)
    for (int64_t i = 0, c = 0; i < line; i += Width, c = c + Width == period ? 0 : c + Width) {
      const int64_t lanes = line - i, place = row * norm.pitch + i;
      value.load(x + i, lanes);
      a.load(factor + c);
      b.load(summand + c);
      value.v = value.v * a.v + b.v;
      if (kActivation == Activation::kRelu) value.v = value.v < 0.0f ? value.v * 0.0f : value.v;
      if (kActivation == Activation::kSilu) kGrid ? value.silu_for_levels() : value.silu();
      if (kGrid) value.store_levels(static_cast<uint8_t*>(y) + place, lanes, inverse, zero);
      else value.store(static_cast<float*>(y) + place, lanes);
    }
}

template <int Width, bool kGrid>
WORLDENV_INLINE void activate(const float* x, const float* factor, const float* summand, void* y, const Norm& norm) {
  if (norm.activation == Activation::kSilu) activate<Width, Activation::kSilu, kGrid>(x, factor, summand, y, norm);
  else if (norm.activation == Activation::kRelu) activate<Width, Activation::kRelu, kGrid>(x, factor, summand, y, norm);
  else activate<Width, Activation::kNone, kGrid>(x, factor, summand, y, norm);
}

// Adds up N vectors of a period, from the c-th number on, and their squares over all lines, as they lie in memory.
template <int Width, int N>
WORLDENV_INLINE void add_up(const float* x, int64_t c, const float* origin, float* sum, float* square,
                            const Norm& norm) {
  const int64_t line = norm.line(), period = norm.period(Width);
  Vector<Width> o[N], s[N], q[N];
  WORLDENV_EACH(n, N) { o[n].load(origin + c + n * Width); });
  for (int64_t row = 0; row < norm.lines; ++row, x += line)
    for (int64_t i = c; i < line; i += period)
      WORLDENV_EACH(n, N) {
        const int64_t at = i + n * Width, lanes = line - at;
        if (lanes <= 0) return;
        Vector<Width> value, less = o[n];
        value.load(x + at, lanes);
        if (lanes < Width) less.load(origin + c + n * Width, lanes);  // zero where there is no number
        value.v -= less.v;
        s[n].v += value.v;
        q[n].v += value.v * value.v;
      });
  WORLDENV_EACH(n, N) { s[n].store(sum + c + n * Width), q[n].store(square + c + n * Width); });
}

// Sums are taken from the first position's values, so that a large mean costs no precision.
template <int Width>
WORLDENV_INLINE void normalise(
    const float* x,  // [lines, positions, C]
    const Condition& condition,
    void* y,         // the same shape, lines `pitch` apart: float, or uint8_t on a grid
    float* room,     // [3, period]
    const Norm& norm
) {
  const int64_t period = norm.period(Width), channels = norm.channels, each = channels / norm.groups;
  float *sum = room, *square = room + period, *first = room + 2 * period;
  for (int64_t c = 0; c < period; ++c) first[c] = x[c % channels / each * each];
  for (int64_t c = 0, left = period / Width; left > 0; left = (period - c) / Width) {
    if (left % 5 == 0) add_up<Width, 5>(x, c, first, sum, square, norm), c += 5 * Width;
    else if (left >= 4) add_up<Width, 4>(x, c, first, sum, square, norm), c += 4 * Width;
    else add_up<Width, 1>(x, c, first, sum, square, norm), c += Width;
  }
  for (int64_t c = channels; c < period; ++c) sum[c % channels] += sum[c], square[c % channels] += square[c];
  for (int64_t g = 0; g < channels; g += each) {
    double total = 0.0, squares = 0.0;
    for (int64_t c = g; c < g + each; ++c) total += sum[c], squares += square[c];
    const double count = double(norm.lines * norm.positions * each), mean = total / count;
    const double variance = std::max(squares / count - mean * mean, 0.0);
    const float inverse = float(1.0 / std::sqrt(variance + norm.eps)), centre = float(mean) + first[g];
    for (int64_t c = g; c < g + each; ++c) {
      const float gain = condition.scale ? 1.0f + condition.scale[c] : 1.0f;
      const float factor = inverse * condition.weight[c];
      sum[c] = factor * gain;
      square[c] = (condition.bias[c] - centre * factor) * gain + (condition.shift ? condition.shift[c] : 0.0f);
    }
  }
  for (int64_t c = channels; c < period; ++c) sum[c] = sum[c % channels], square[c] = square[c % channels];
  if (norm.step) activate<Width, true>(x, sum, square, y, norm);
  else activate<Width, false>(x, sum, square, y, norm);
}

inline Activation activation_of(const std::string& name) {
  return name == "silu" ? Activation::kSilu : name == "relu" ? Activation::kRelu : Activation::kNone;
}

}  // namespace worldenv::cpu
