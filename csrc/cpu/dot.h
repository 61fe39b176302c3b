// Products of bytes with 8-bit weights for the CPU faces: a layer, packed as worldenv/ops/packed.py says, over rows of
// positions.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "vector.h"

namespace worldenv::cpu {

constexpr int64_t kLanes = 16;  // outputs that lie side by side in the packed weights
constexpr int64_t kFour = 4;    // inputs of one output that lie side by side

// For N outputs and a window of `rows` lines of `run` bytes.
struct Packed {
  const int8_t* weights;  // [ceil(N / 16), rows, run / 4, 16, 4]
  const float* affine;    // [2, ceil(N / 16) * 16], factor and summand of each output
  int64_t outputs, rows, run;

  int64_t blocks() const { return (outputs + kLanes - 1) / kLanes; }
  int64_t block_bytes() const { return rows * run * kLanes; }
};

// Where lines of positions are read and written.
struct Lines {
  const uint8_t* from;
  int64_t step, line;  // bytes from one position, and from one line, to the next
  float* to;           // [lines, count, outputs]
  const float* onto;   // as `to`, to be added; or null
  int64_t lines, count;
};

// acc += the products of four bytes with four weights in each lane. kFast: by the instruction that is made for it.
template <int Width, bool kFast>
WORLDENV_INLINE void dot(typename Native<Width>::Ints& acc, typename Native<Width>::Ints bytes,
                         typename Native<Width>::Ints weights) {
#if WORLDENV_X86
  if (kFast && Width == 16) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(bytes), "v"(weights));
    return;
  }
  if (kFast && Width == 8) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(bytes), "x"(weights));
    return;
  }
#endif
  for (int i = 0; i < 4; ++i) acc += ((bytes >> 8 * i) & 255) * ((weights << (24 - 8 * i)) >> 24);
}

// Four bytes, the same in every lane.
template <int Width, bool kFast>
WORLDENV_INLINE void spread(typename Native<Width>::Ints& to, const uint8_t* from) {
  int32_t four;
  __builtin_memcpy(&four, from, sizeof(four));
#if WORLDENV_X86
  if (kFast && Width == 16) {
    asm("vpbroadcastd %1, %0" : "=v"(to) : "m"(*reinterpret_cast<const uint8_t(*)[4]>(from)));
    return;
  }
#endif
  to = typename Native<Width>::Ints{} + four;
}

// f(0), f(1), .. with constants: an array that is indexed by constants alone stays in registers.
template <typename Function, int... I>
WORLDENV_INLINE void each(std::integer_sequence<int, I...>, Function f) {
  (f(std::integral_constant<int, I>{}), ...);
}
#define WORLDENV_EACH(i, count) each(std::make_integer_sequence<int, count>{}, [&](auto i) WORLDENV_INLINE_LAMBDA

// P positions by N vectors of outputs, from vector `first` on.
template <int Width, bool kFast, int P, int N>
WORLDENV_INLINE void tile(const Packed& layer, const Lines& image, int64_t y, int64_t x, int64_t first) {
  using Ints = typename Native<Width>::Ints;
  Ints acc[P * N], w[N];
  const int8_t* weights[N];
  WORLDENV_EACH(i, P * N) { acc[i] = Ints{}; });
  WORLDENV_EACH(n, N) {
    const int64_t lane = (first + n) * Width;
    weights[n] = layer.weights + lane / kLanes * layer.block_bytes() + lane % kLanes * kFour;
  });
  const int64_t step = image.step, run = layer.run;
  const uint8_t* from = image.from + y * image.line + x * step;
  for (int64_t row = 0, at = 0; row < layer.rows; ++row, from += image.line)
    for (int64_t k = 0; k < run; k += kFour, at += kLanes * kFour) {
      WORLDENV_EACH(n, N) { __builtin_memcpy(&w[n], weights[n] + at, sizeof(Ints)); });
      WORLDENV_EACH(p, P) {
        Ints bytes;
        spread<Width, kFast>(bytes, from + p * step + k);
        WORLDENV_EACH(n, N) { dot<Width, kFast>(acc[p * N + n], bytes, w[n]); });
      });
    }
  const int64_t padded = layer.blocks() * kLanes;
  WORLDENV_EACH(n, N) {
    const int64_t lane = (first + n) * Width, lanes = layer.outputs - lane;
    if (lanes <= 0) return;
    Vector<Width> factor, summand;
    factor.load(layer.affine + lane);
    summand.load(layer.affine + padded + lane);
    WORLDENV_EACH(p, P) {
      const int64_t place = (y * image.count + x + p) * layer.outputs + lane;
      Vector<Width> sum, more;
      sum.v = __builtin_convertvector(acc[p * N + n], typename Vector<Width>::Floats) * factor.v + summand.v;
      if (image.onto) {
        more.load(image.onto + place, lanes);
        sum.v += more.v;
      }
      sum.store(image.to + place, lanes);
    });
  });
}

template <int Width, bool kFast, int P, int N>
WORLDENV_INLINE void tiles(const Packed& layer, const Lines& image, int64_t first) {
  for (int64_t y = 0; y < image.lines; ++y) {
    int64_t x = 0;
    for (; x + P <= image.count; x += P) tile<Width, kFast, P, N>(layer, image, y, x, first);
    for (; x < image.count; ++x) tile<Width, kFast, 1, N>(layer, image, y, x, first);
  }
}

// A layer over all positions, a few outputs at a time, so that their weights stay close. Accumulators, weights and a
// byte fill the registers that there are.
template <int Width, bool kFast>
WORLDENV_INLINE void multiply(const Packed& layer, const Lines& image) {
  const int64_t vectors = layer.blocks() * kLanes / Width;
  for (int64_t v = 0, left = vectors; left > 0; left = vectors - v) {
    if (Width < 16) tiles<Width, kFast, 4, 2>(layer, image, v), v += 2;
    else if (left == 1) tiles<Width, kFast, 8, 1>(layer, image, v), v += 1;
    else if (left == 2 || left == 4) tiles<Width, kFast, 8, 2>(layer, image, v), v += 2;
    else tiles<Width, kFast, 8, 3>(layer, image, v), v += 3;
  }
}

}  // namespace worldenv::cpu
