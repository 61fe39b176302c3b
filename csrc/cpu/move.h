// A picture moved with a point, as a camera sees a thing at the point's depth move (worldenv/ops/known_pictures.py).
// It is laid out as pixels of four floats, one of them idle, a few rows side by side: these rows are resampled pixel by
// pixel, then columns row by row.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "patch.h"
#include "vector.h"

namespace worldenv::cpu {

using Pixel = Native<4>::Floats;  // RGB in [0, 255], and a number more

// Room for numbers whose vectors do not straddle two cache lines.
struct Numbers {
  struct alignas(64) Line {
    float numbers[16];
  };
  std::vector<Line> lines;

  explicit Numbers(int64_t count) : lines((count + 15) / 16) {}
  float* data() { return lines.data()->numbers; }
  Pixel* pixels() { return reinterpret_cast<Pixel*>(data()); }
};

struct Point {
  float x, y, depth;  // px, px, m
};

struct Taps {
  int64_t at[4];
  float weight[4];
};

struct Resampling {
  std::vector<Taps> across, down;  // [W], [H]
};

inline Point project(const float* point, const float* camera) {  // [3 or more], [3, 4]
  float h[3];
  for (int i = 0; i < 3; ++i) {
    const float* row = camera + 4 * i;
    h[i] = point[0] * row[0] + point[1] * row[1] + point[2] * row[2] + row[3];
  }
  const float depth = h[2] < 1e-3f ? 1e-3f : h[2];
  return {h[0] / depth, h[1] / depth, depth};
}

// Catmull-Rom weights of every output coordinate.
WORLDENV_INLINE void resample(float shift, float scale, std::vector<Taps>& taps) {
  const float last = float(taps.size() - 1);
  for (size_t x = 0; x < taps.size(); ++x) {
    const float centre = shift + scale * (float(x) + 0.5f) - 0.5f, first = std::floor(centre), t = centre - first;
    const float weight[4] = {((2 - t) * t - 1) * t, (3 * t - 5) * t * t + 2, ((4 - 3 * t) * t + 1) * t,
                             (t - 1) * t * t};
    for (int n = 0; n < 4; ++n) {
      const float at = first + float(n - 1);
      taps[x].at[n] = int64_t(at > 0 ? at < last ? at : last : 0.0f);  // NaN: 0
      taps[x].weight[n] = weight[n] / 2;
    }
  }
}

// What moves a picture with a point from a to b.
WORLDENV_INLINE void resample(const Point& a, const Point& b, Resampling& out) {
  const float scale = b.depth / a.depth;
  resample(a.x - b.x * scale, scale, out.across);
  resample(a.y - b.y * scale, scale, out.down);
}

// A pixel of three bytes; one more is read, and the last number means nothing.
template <int Width>
WORLDENV_INLINE Pixel to_pixel(const uint8_t* from) {
#if WORLDENV_X86
  if (Width >= 8) {
    Pixel pixel;
    asm("vpmovzxbd %1, %0\n\tvcvtdq2ps %0, %0" : "=x"(pixel) : "m"(*reinterpret_cast<const uint8_t(*)[4]>(from)));
    return pixel;
  }
#endif
  return Pixel{float(from[0]), float(from[1]), float(from[2]), 0.0f};
}

// A frame in the layout that `move` reads.
template <int Width>
WORLDENV_INLINE void side_by_side(
    const uint8_t* frame,  // [H, W, 3], and one byte more
    int64_t height,
    int64_t width,
    Pixel* to              // [H / kRows, W, kRows]
) {
  constexpr int64_t kRows = Width / 4;
  for (int64_t y = 0; y < height; ++y) {
    Pixel* row = to + (y / kRows * width * kRows) + y % kRows;
    for (int64_t x = 0; x < width; ++x, frame += 3) row[x * kRows] = to_pixel<Width>(frame);
  }
}

// Rounded to bytes; NaN is grey.
template <int Width>
WORLDENV_INLINE void store_rounded(Vector<Width> value, uint8_t* to) {
  value.v = value.v == value.v ? value.v : typename Vector<Width>::Floats{} + 127.5f;
  value.store_levels(to, Width, 1.0f, 0.0f);
}

// Two rows of bytes to their patches, each so many times; they lie `step` bytes apart.
template <int Width>
WORLDENV_INLINE void store_patches(const uint8_t* upper, const uint8_t* lower, int64_t width, int64_t copies,
                                   int64_t step, uint8_t* to) {
  for (int64_t x = 0; x < width; x += 2, upper += 6, lower += 6, to += step) {
#if WORLDENV_X86
    if (Width >= 8) {  // the lower pixels with two bytes before them, since there may be none after them
      const Native<16>::Bytes order = {0, 3, 10, 13, 1, 4, 11, 14, 2, 5, 12, 15, 0, 0, 0, 0};
      Native<16>::Bytes patch;
      asm("vmovq %1, %0\n\tvpinsrq $1, %2, %0, %0\n\tvpshufb %3, %0, %0"
          : "=&x"(patch)
          : "m"(*reinterpret_cast<const uint8_t(*)[8]>(upper)),
            "m"(*reinterpret_cast<const uint8_t(*)[8]>(lower - 2)), "x"(order));
      for (int64_t k = 0; k < copies; ++k) __builtin_memcpy(to + k * kPatch, &patch, kPatch);
      continue;
    }
#endif
    uint8_t patch[kPatch];
    for (int64_t c = 0; c < 3; ++c) {
      patch[4 * c] = upper[c], patch[4 * c + 1] = upper[c + 3];
      patch[4 * c + 2] = lower[c], patch[4 * c + 3] = lower[c + 3];
    }
    for (int64_t k = 0; k < copies; ++k) __builtin_memcpy(to + k * kPatch, patch, kPatch);
  }
}

// The numbers of a row, three for a pixel and at least one more, in whole vectors.
inline int64_t row_size(int64_t width) { return (3 * width + 16) / 16 * 16; }

// kRows rows that lie side by side, resampled into rows that lie one after the other.
template <int Width>
WORLDENV_INLINE void move_across(const Pixel* group, const std::vector<Taps>& across, int64_t count, float* to) {
  constexpr int64_t kRows = Width / 4;
  const int64_t width = int64_t(across.size()), row = row_size(width);
  Vector<Width> sum, tap;
  for (int64_t x = 0; x < width; ++x) {
    const Taps& taps = across[x];
    sum.fill(0.0f);
    for (int n = 0; n < 4; ++n) {
      tap.load(reinterpret_cast<const float*>(group + taps.at[n] * kRows));
      sum.v += taps.weight[n] * tap.v;
    }
    Pixel pixels[kRows];
    sum.store(reinterpret_cast<float*>(pixels));
    for (int64_t i = 0; i < kRows && i < count; ++i)  // the idle number lies where the next pixel will
      __builtin_memcpy(to + i * row + 3 * x, &pixels[i], sizeof(Pixel));
  }
}

// A row from those above and below it, in bytes.
template <int Width>
WORLDENV_INLINE void move_down(const float* rows, const Taps& taps, int64_t row, uint8_t* to) {
  const float *at[4], weight[4] = {taps.weight[0], taps.weight[1], taps.weight[2], taps.weight[3]};
  for (int n = 0; n < 4; ++n) at[n] = rows + taps.at[n] * row;
  Vector<Width> sum, tap;
  for (int64_t i = 0; i < row; i += Width) {
    sum.fill(0.0f);
    for (int n = 0; n < 4; ++n) {
      tap.load(at[n] + i);
      sum.v += weight[n] * tap.v;
    }
    store_rounded<Width>(sum, to + i);
  }
}

template <int Width>
WORLDENV_INLINE void move(
    const Pixel* picture,  // [H / kRows, W, kRows]
    const Resampling& resampling,
    int64_t step,          // bytes from patch to patch
    float* rows,           // [H, row_size], room
    uint8_t* pair,         // [2, row_size], room
    uint8_t* to            // [H / 2, W / 2, step]
) {
  constexpr int64_t kRows = Width / 4;
  const std::vector<Taps>& down = resampling.down;
  const int64_t height = int64_t(down.size()), width = int64_t(resampling.across.size()), row = row_size(width);
  int64_t next = down[0].at[0] / kRows * kRows;  // the first row that is not yet in `rows`; they are needed in order
  for (int64_t y = 0; y < height; y += 2, to += width / 2 * step) {
    for (; next <= down[y + 1].at[3]; next += kRows)
      move_across<Width>(picture + next * width, resampling.across, height - next, rows + next * row);
    for (int64_t below = 0; below < 2; ++below)
      move_down<Width>(rows, down[y + below], row, pair + below * row);
    store_patches<Width>(pair, pair + row, width, 1, step, to);
  }
}

}  // namespace worldenv::cpu
