// Where the channels of one image look; worldenv/ops/spatial_softmax.py says what it means.
// Channels last, a channel a lane: the greatest value first, then the sums.
#pragma once

#include <cstdint>

#include "vector.h"

namespace worldenv::cpu {

template <int Width>
WORLDENV_INLINE void look(const float* rows, int64_t height, int64_t width, int64_t channels, float* out) {
  for (int64_t c = 0; c < channels; c += Width) {
    const int64_t lanes = channels - c;
    Vector<Width> value, highest, e, total, x, y, peak;
    highest.load(rows + c, lanes);
    for (int64_t p = 1; p < height * width; ++p) {
      value.load(rows + p * channels + c, lanes);
      highest.v = highest.v > value.v ? highest.v : value.v;
    }
    for (int64_t i = 0; i < height; ++i) {
      Vector<Width> line;
      const float down = 2.0f * float(i) / float(height - 1) - 1.0f;
      for (int64_t j = 0; j < width; ++j) {
        value.load(rows + (i * width + j) * channels + c, lanes);
        e.v = value.v - highest.v;
        e.exponential();
        line.v += e.v;
        x.v += e.v * (2.0f * float(j) / float(width - 1) - 1.0f);
        peak.v += e.v * value.v;
      }
      total.v += line.v;
      y.v += line.v * down;
    }
    total.v = 1.0f / total.v;
    x.v *= total.v, y.v *= total.v, peak.v *= total.v;
    x.store(out + c, lanes), y.store(out + channels + c, lanes), peak.store(out + 2 * channels + c, lanes);
  }
}

}  // namespace worldenv::cpu
