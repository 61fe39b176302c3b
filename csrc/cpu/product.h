// The inner loop of small matrix products: R x V registers of sums, of which each loaded number is used R or V times;
// and the transposition that lays their operands out.
#pragma once

#include "vector.h"

namespace worldenv::cpu {

// How many rows and registers keep the sums of an instruction set with 32 or 16 registers.
template <int Width>
struct Block {
  static constexpr int kRows = Width == 16 ? 8 : 4;
  static constexpr int kVectors = Width == 16 ? 3 : 2;
  static constexpr int kLanes = kVectors * Width;
};

// sum[r][l] += sum over i of a[r * row + i * step] * b[i * V * Width + l].
template <int Width, int Rows, int V>
WORLDENV_INLINE void product(
    const float* a, int64_t row, int64_t step, const float* b, int64_t count, Vector<Width> (&sum)[Rows][V]
) {
  for (int64_t i = 0; i < count; ++i, a += step, b += V * Width) {
    Vector<Width> right[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) right[v].load(b + v * Width);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v].v += a[r * row] * right[v].v;
  }
}

// Every second block of `far` lanes of `first` changes places with the block before it of `second`.
template <int Width>
WORLDENV_INLINE void exchange(Vector<Width>& first, Vector<Width>& second, int far) {
  typename Vector<Width>::Ints upper{}, lower{};
  for (int l = 0; l < Width; ++l) {
    upper[l] = l & far ? Width + l - far : l;
    lower[l] = l & far ? Width + l : l + far;
  }
  const auto a = first.v, b = second.v;
  first.v = __builtin_shuffle(a, b, upper);
  second.v = __builtin_shuffle(a, b, lower);
}

// Transposes a square of Width registers: in each step, blocks of `far` lanes change places across the diagonal.
template <int Width>
WORLDENV_INLINE void transpose(Vector<Width> (&rows)[Width]) {
#pragma GCC unroll 4
  for (int far = Width / 2; far; far /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < Width; ++i)
      if (!(i & far)) exchange<Width>(rows[i], rows[i + far], far);
}

}  // namespace worldenv::cpu
