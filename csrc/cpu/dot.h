// Products of bytes with 8-bit weights for the CPU faces: a layer, packed as worldenv/ops/packed.py says, over rows of
// positions.
#pragma once

#include <cstdint>

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

// Where lines of positions are read; what comes of each position and output goes to a function.
struct Lines {
  const uint8_t* from;
  int64_t step, line, next;  // bytes from a position to the next, of the window's lines, and of the lines of positions
  int64_t lines, count;
};

#if WORLDENV_X86
// acc += the products of four bytes with four weights in each lane. Both are widened to 16 bits, even and odd places
// apart; vpmaddwd multiplies them and adds neighbours in 32 bits, so the sum is exact (vpmaddubsw saturates at 32,767).
template <int Width>
WORLDENV_INLINE void dot_in_pairs(typename Native<Width>::Ints& acc, typename Native<Width>::Ints bytes,
                                  typename Native<Width>::Ints weights) {
  typedef uint16_t Unsigned __attribute__((vector_size(4 * Width)));
  typedef int16_t Signed __attribute__((vector_size(4 * Width)));
  const Unsigned level = (Unsigned)bytes;
  const Signed weight = (Signed)weights;
  typename Native<Width>::Ints even, odd;
  asm("vpmaddwd %2, %1, %0" : "=v"(even) : "v"(level & 255), "v"((weight << 8) >> 8));
  asm("vpmaddwd %2, %1, %0" : "=v"(odd) : "v"(level >> 8), "v"(weight >> 8));
  acc += even + odd;
}
#endif

// acc += the products of four bytes with four weights in each lane. kFast: by the instruction that is made for it.
// kHalf: in the lower half of 16 lanes, which takes half as long where a register is worked on in two halves.
template <int Width, bool kFast, bool kHalf>
WORLDENV_INLINE void dot(typename Native<Width>::Ints& acc, typename Native<Width>::Ints bytes,
                         typename Native<Width>::Ints weights) {
#if WORLDENV_X86
  if (kFast && Width == 16) {
    if (kHalf) asm("vpdpbusd %t2, %t1, %t0" : "+v"(acc) : "v"(bytes), "v"(weights));
    else asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(bytes), "v"(weights));
    return;
  }
  if (kFast && Width == 8) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(bytes), "x"(weights));
    return;
  }
  if constexpr (!kFast && Width > 4) return dot_in_pairs<Width>(acc, bytes, weights);
#endif
  for (int i = 0; i < 4; ++i) acc += ((bytes >> 8 * i) & 255) * ((weights << (24 - 8 * i)) >> 24);
}

// The same four bytes into every lane: one instruction, where the compiler takes six.
template <int Width>
WORLDENV_INLINE void spread(typename Native<Width>::Ints& to, const uint8_t* from) {
#if WORLDENV_X86
  if constexpr (Width > 4) {
    asm("vpbroadcastd %1, %0" : "=v"(to) : "m"(*reinterpret_cast<const uint8_t(*)[4]>(from)));
    return;
  }
#endif
  int32_t four;
  __builtin_memcpy(&four, from, sizeof(four));
  to = typename Native<Width>::Ints{} + four;
}

// P positions by N vectors of outputs, from vector `first` on; kHalf: of the last no more than half are outputs.
template <int Width, bool kFast, int P, int N, bool kHalf, typename Finish>
WORLDENV_INLINE void tile(const Packed& layer, const Lines& image, int64_t y, int64_t x, int64_t first,
                          const Finish& finish) {
  using Ints = typename Native<Width>::Ints;
  Ints acc[P * N], w[N];
  const int8_t* weights[N];
  WORLDENV_EACH(i, P * N) { acc[i] = Ints{}; });
  WORLDENV_EACH(n, N) {
    const int64_t lane = (first + n) * Width;
    weights[n] = layer.weights + lane / kLanes * layer.block_bytes() + lane % kLanes * kFour;
  });
  const int64_t step = image.step, run = layer.run;
  const uint8_t* from = image.from + y * image.next + x * step;
  for (int64_t row = 0, at = 0; row < layer.rows; ++row, from += image.line)
    for (int64_t k = 0; k < run; k += kFour, at += kLanes * kFour) {
      WORLDENV_EACH(n, N) { __builtin_memcpy(&w[n], weights[n] + at, sizeof(Ints)); });
      WORLDENV_EACH(p, P) {
        Ints bytes;
        spread<Width>(bytes, from + p * step + k);
        WORLDENV_EACH(n, N) { dot<Width, kFast, kHalf && n == N - 1>(acc[p * N + n], bytes, w[n]); });
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
      Vector<Width> sum;
      sum.v = __builtin_convertvector(acc[p * N + n], typename Vector<Width>::Floats) * factor.v + summand.v;
      finish(sum, (y * image.count + x + p) * layer.outputs, lane, lanes);
    });
  });
}

template <int Width, bool kFast, int P, int N, bool kHalf = false, typename Finish>
WORLDENV_INLINE void tiles(const Packed& layer, const Lines& image, int64_t first, const Finish& finish) {
  for (int64_t y = 0; y < image.lines; ++y) {
    int64_t x = 0;
    for (; x + P <= image.count; x += P) tile<Width, kFast, P, N, kHalf>(layer, image, y, x, first, finish);
    for (; x < image.count; ++x) tile<Width, kFast, 1, N, kHalf>(layer, image, y, x, first, finish);
  }
}

// A layer over all positions, a few outputs at a time, so that their weights stay close. Accumulators, weights and a
// byte fill the registers that there are. finish(vector, position * outputs, output, outputs left) takes the results.
template <int Width, bool kFast, typename Finish>
WORLDENV_INLINE void multiply(const Packed& layer, const Lines& image, const Finish& finish) {
  const int64_t vectors = layer.blocks() * kLanes / Width;
  for (int64_t v = 0, left = vectors; left > 0; left = vectors - v) {
    if (Width < 16) tiles<Width, kFast, 4, 2>(layer, image, v, finish), v += 2;
    else if (left == 1) tiles<Width, kFast, 8, 1>(layer, image, v, finish), v += 1;
    else if (left == 2 || left == 4) tiles<Width, kFast, 8, 2>(layer, image, v, finish), v += 2;
    else if (left > 3 || layer.outputs % kLanes == 0 || layer.outputs % kLanes > kLanes / 2)
      tiles<Width, kFast, 8, 3>(layer, image, v, finish), v += 3;
    else tiles<Width, kFast, 8, 3, true>(layer, image, v, finish), v += 3;
  }
}

template <int Width, bool kFast>
WORLDENV_INLINE void multiply(const Packed& layer, const Lines& image, float* to) {
  multiply<Width, kFast>(layer, image, [=](const Vector<Width>& sum, int64_t place, int64_t lane, int64_t lanes)
                                           WORLDENV_INLINE_LAMBDA { sum.store(to + place + lane, lanes); });
}

// Lines of numbers to the nearest of 256 levels; lines of the result are `pitch` apart.
template <int Width>
WORLDENV_INLINE void to_levels(const float* x, int64_t lines, int64_t line, float step, float zero, uint8_t* to,
                               int64_t pitch) {
  Vector<Width> value;
  const float inverse = 1.0f / step;
  for (int64_t row = 0; row < lines; ++row, x += line, to += pitch)
    for (int64_t i = 0; i < line; i += Width) {
      value.load(x + i, line - i);
      value.store_levels(to + i, line - i, inverse, zero);
    }
}

// For an op that calls `multiply`: body<Width, kFast> for every instruction set, and function(), the one for this CPU.
#define WORLDENV_DOT_FACE(name, attribute, width, fast, body, parameters, arguments) \
  attribute void name parameters { body<width, fast> arguments; }
#if WORLDENV_X86
#define WORLDENV_DOT_FACES(body, parameters, arguments)                                          \
  WORLDENV_DOT_FACE(run_plain, , 4, false, body, parameters, arguments)                          \
  WORLDENV_DOT_FACE(run_avx2, WORLDENV_AVX2, 8, false, body, parameters, arguments)              \
  WORLDENV_DOT_FACE(run_avx2_dot, WORLDENV_AVX2, 8, true, body, parameters, arguments)           \
  WORLDENV_DOT_FACE(run_avx512, WORLDENV_AVX512, 16, false, body, parameters, arguments)         \
  WORLDENV_DOT_FACE(run_avx512_dot, WORLDENV_AVX512, 16, true, body, parameters, arguments)      \
  using Function = void(*) parameters;                                                           \
  Function function() {                                                                          \
    if (isa() == Isa::kAvx512) return has_dot() ? run_avx512_dot : run_avx512;                   \
    if (isa() == Isa::kAvx2) return has_dot() ? run_avx2_dot : run_avx2;                         \
    return run_plain;                                                                            \
  }
#else
#define WORLDENV_DOT_FACES(body, parameters, arguments)                 \
  WORLDENV_DOT_FACE(run_plain, , 4, false, body, parameters, arguments) \
  using Function = void(*) parameters;                                  \
  Function function() { return run_plain; }
#endif

}  // namespace worldenv::cpu
