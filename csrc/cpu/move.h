// A picture moved with a point, as a camera sees a thing at the point's depth move (worldenv/ops/known_pictures.py).
// It is laid out as pixels of four floats, a few rows side by side: these rows are resampled pixel by pixel, then columns
// row by row.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "patch.h"
#include "vector.h"

namespace worldenv::cpu {

using Pixel = Native<4>::Floats;  // RGB in [0, 255], and a number more

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
inline void resample(float shift, float scale, std::vector<Taps>& taps) {
  const float last = float(taps.size() - 1);
  for (size_t x = 0; x < taps.size(); ++x) {
    const float centre = shift + scale * (float(x) + 0.5f) - 0.5f, first = std::floor(centre), t = centre - first;
    const float weight[4] = {((2 - t) * t - 1) * t, (3 * t - 5) * t * t + 2, ((4 - 3 * t) * t + 1) * t,
                             (t - 1) * t * t};
    for (int n = 0; n < 4; ++n) {
      taps[x].at[n] = int64_t(std::fmin(std::fmax(first + float(n - 1), 0.0f), last));  // NaN: 0
      taps[x].weight[n] = weight[n] / 2;
    }
  }
}

// What moves a picture with a point from a to b.
inline void resample(const Point& a, const Point& b, Resampling& out) {
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

// Two rows of pixels to their patches, `step` bytes apart, rounded; NaN is grey. The bytes lie where the numbers lay.
template <int Width>
WORLDENV_INLINE void store_patches(Pixel* pair, int64_t width, int64_t step, uint8_t* to) {
  const float* numbers = reinterpret_cast<const float*>(pair);
  uint8_t* bytes = reinterpret_cast<uint8_t*>(pair);
  Vector<Width> value;
  for (int64_t i = 0; i < 8 * width; i += Width) {
    value.load(numbers + i, 8 * width - i);
    value.v = value.v == value.v ? value.v : typename Vector<Width>::Floats{} + 127.5f;
    value.store_levels(bytes + i, 8 * width - i, 1.0f, 0.0f);
  }
  const uint8_t* lower = bytes + 4 * width;
  for (int64_t x = 0; x < width; x += 2, bytes += 8, lower += 8, to += step) {
#if WORLDENV_X86
    if (Width >= 8) {
      const Native<16>::Bytes order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 0, 0, 0, 0};
      Native<16>::Bytes four;
      asm("vmovq %1, %0\n\tvpinsrq $1, %2, %0, %0\n\tvpshufb %3, %0, %0"
          : "=&x"(four)
          : "m"(*reinterpret_cast<const uint8_t(*)[8]>(bytes)), "m"(*reinterpret_cast<const uint8_t(*)[8]>(lower)),
            "x"(order));
      __builtin_memcpy(to, &four, kPatch);
      continue;
    }
#endif
    for (int64_t c = 0; c < 3; ++c)
      to[4 * c] = bytes[c], to[4 * c + 1] = bytes[c + 4], to[4 * c + 2] = lower[c], to[4 * c + 3] = lower[c + 4];
  }
}

template <int Width>
WORLDENV_INLINE void move(
    const Pixel* picture,  // [H / kRows, W, kRows]
    const Resampling& resampling,
    int64_t height,
    int64_t width,
    int64_t step,          // bytes from patch to patch
    Pixel* room,           // [H + 2, W]
    uint8_t* to            // [H / 2, W / 2, step]
) {
  const Taps *across = resampling.across.data(), *down = resampling.down.data();
  const int64_t row = 4 * width;
  constexpr int64_t kRows = Width / 4;
  Vector<Width> sum, tap;
  for (int64_t y = 0; y < height; y += kRows, picture += kRows * width)
    for (int64_t x = 0; x < width; ++x) {
      sum.fill(0.0f);
      for (int n = 0; n < 4; ++n) {
        tap.load(reinterpret_cast<const float*>(picture + across[x].at[n] * kRows));
        sum.v += across[x].weight[n] * tap.v;
      }
      Pixel pixels[kRows];
      sum.store(reinterpret_cast<float*>(pixels));
      for (int64_t i = 0; i < kRows && y + i < height; ++i) room[(y + i) * width + x] = pixels[i];
    }
  const float* rows = reinterpret_cast<const float*>(room);
  Pixel* pair = room + height * width;
  for (int64_t y = 0; y < height; y += 2) {
    for (int64_t below = 0; below < 2; ++below)
      for (int64_t i = 0; i < row; i += Width) {
        const Taps& taps = down[y + below];
        sum.fill(0.0f);
        for (int n = 0; n < 4; ++n) {
          tap.load(rows + taps.at[n] * row + i, row - i);
          sum.v += taps.weight[n] * tap.v;
        }
        sum.store(reinterpret_cast<float*>(pair + below * width) + i, row - i);
      }
    store_patches<Width>(pair, width, step, to);
    to += width / 2 * step;
  }
}

}  // namespace worldenv::cpu
