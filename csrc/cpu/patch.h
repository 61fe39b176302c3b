// Frames as patches: 12 numbers for 2 x 2 pixels, a colour after the other (worldenv/ops/patchify.py).
#pragma once

#include <cstdint>

namespace worldenv::cpu {

constexpr int64_t kPatch = 12;

// A pixel as networks read it, in [-1, 1].
inline float to_unit(uint8_t byte) { return float(byte) * (1.0f / 127.5f) - 1.0f; }
inline float to_unit(float value) { return value; }

// One frame; its patches lie `count` patches apart, from the first one at `to`.
template <typename Number>
void to_patches(const Number* frame, int64_t height, int64_t width, int64_t count, Number* to) {
  for (int64_t y = 0; y < height; y += 2)
    for (int64_t x = 0; x < width; x += 2, to += count * kPatch) {
      const Number *upper = frame + (y * width + x) * 3, *lower = upper + width * 3;
      for (int64_t c = 0; c < 3; ++c) {
        to[4 * c] = upper[c], to[4 * c + 1] = upper[c + 3];
        to[4 * c + 2] = lower[c], to[4 * c + 3] = lower[c + 3];
      }
    }
}

}  // namespace worldenv::cpu
