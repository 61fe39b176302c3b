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

// Where a row of positions is read and written: bytes from one position, and from one line of the window, to the next.
struct Row {
  const uint8_t* from;
  int64_t step, line;
  float* to;
  const float* onto;  // as `to`, to be added; or null
  int64_t pitch;      // floats from one position of `to` to the next
  bool relu;
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
WORLDENV_INLINE void tile(const Packed& layer, const Row& row, int64_t position, int64_t first) {
  using Ints = typename Native<Width>::Ints;
  Ints acc[P * N], w[N];
  const int8_t* weights[N];
  WORLDENV_EACH(i, P * N) { acc[i] = Ints{}; });
  WORLDENV_EACH(n, N) {
    const int64_t lane = (first + n) * Width;
    weights[n] = layer.weights + lane / kLanes * layer.block_bytes() + lane % kLanes * kFour;
  });
  const uint8_t* from = row.from + position * row.step;
  const int64_t step = row.step, run = layer.run;
  for (int64_t line = 0, at = 0; line < layer.rows; ++line, from += row.line)
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
      const int64_t place = (position + p) * row.pitch + lane;
      Vector<Width> y, more;
      y.v = __builtin_convertvector(acc[p * N + n], typename Vector<Width>::Floats) * factor.v + summand.v;
      if (row.relu) y.v = y.v < 0.0f ? y.v * 0.0f : y.v;
      if (row.onto) {
        more.load(row.onto + place, lanes);
        y.v += more.v;
      }
      y.store(row.to + place, lanes);
    });
  });
}

template <int Width, bool kFast, int P, int N>
WORLDENV_INLINE void tiles(const Packed& layer, const Row& row, int64_t count, int64_t first) {
  int64_t p = 0;
  for (; p + P <= count; p += P) tile<Width, kFast, P, N>(layer, row, p, first);
  for (; p < count; ++p) tile<Width, kFast, 1, N>(layer, row, p, first);
}

// A layer over a row of `count` positions. Accumulators, weights and a byte fill the registers that there are.
template <int Width, bool kFast>
WORLDENV_INLINE void multiply(const Packed& layer, const Row& row, int64_t count) {
  const int64_t vectors = layer.blocks() * kLanes / Width;
  if (Width < 16) {
    for (int64_t v = 0; v < vectors; v += 2) tiles<Width, kFast, 4, 2>(layer, row, count, v);
    return;
  }
  for (int64_t v = 0; v < vectors;) {
    const int64_t left = vectors - v;
    if (left >= 5 && left != 6) tiles<Width, kFast, 4, 5>(layer, row, count, v), v += 5;
    else if (left == 4) tiles<Width, kFast, 4, 4>(layer, row, count, v), v += 4;
    else if (left >= 3) tiles<Width, kFast, 8, 3>(layer, row, count, v), v += 3;
    else if (left == 2) tiles<Width, kFast, 8, 2>(layer, row, count, v), v += 2;
    else tiles<Width, kFast, 8, 1>(layer, row, count, v), v += 1;
  }
}

}  // namespace worldenv::cpu
