// A convolution or linear layer in 8 bits over one image; worldenv/ops/conv_int8.py says what it means.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dot.h"

namespace worldenv::cpu {

struct Conv {
  int64_t height, width, channels, stride;
  Packed layer;
  float step, zero;        // of the input's grid
  bool relu;
  float to_step, to_zero;  // of the result's; to_step 0: floats

  int64_t border() const { return layer.rows / 2; }
  int64_t lines() const { return (height + stride - 1) / stride; }
  int64_t count() const { return (width + stride - 1) / stride; }
  int64_t room() const { return (height + 2 * border()) * (width + 2 * border()) * channels; }
};

// One of each pair is null, and `onto` may be.
struct Image {
  const uint8_t* levels;  // [height, width, channels]
  const float* numbers;
  const float* onto;      // [lines, count, outputs]
  uint8_t* to_levels;     // likewise
  float* to;
};

// `room` is `conv.room()` bytes of the level of 0: what is beyond the border stays as it is.
template <int Width, bool kFast>
WORLDENV_INLINE void convolve(const Conv& conv, const Image& image, uint8_t* room) {
  const int64_t border = conv.border(), line = conv.width * conv.channels, pitch = line + 2 * border * conv.channels;
  uint8_t* inner = room + border * (pitch + conv.channels);
  const uint8_t* from = room;
  if (image.numbers) to_levels<Width>(image.numbers, conv.height, line, conv.step, conv.zero, inner, pitch);
  else if (!border) from = image.levels;
  else for (int64_t y = 0; y < conv.height; ++y) std::copy_n(image.levels + y * line, line, inner + y * pitch);
  const float inverse = image.to_levels ? 1.0f / conv.to_step : 0.0f, zero = conv.to_zero;
  multiply<Width, kFast>(
      conv.layer, {from, conv.stride * conv.channels, pitch, conv.stride * pitch, conv.lines(), conv.count()},
      [&](Vector<Width>& sum, int64_t place, int64_t lane, int64_t lanes) WORLDENV_INLINE_LAMBDA {
        if (conv.relu) sum.v = sum.v < 0.0f ? sum.v * 0.0f : sum.v;
        if (image.onto) {
          Vector<Width> more;
          more.load(image.onto + place + lane, lanes);
          sum.v += more.v;
        }
        if (image.to_levels) sum.store_levels(image.to_levels + place + lane, lanes, inverse, zero);
        else sum.store(image.to + place + lane, lanes);
      });
}

}  // namespace worldenv::cpu
