// The layer of a thing: its colours and shares, moved; worldenv/ops/known_pictures.py says what it means. A thing is
// small, so all of this stays within the boxes of pixels that it reaches.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "move.h"

namespace worldenv::cpu {

constexpr float kThere = 0.05f;  // the share of a pixel from which on the thing counts as there

struct Box {
  int64_t top, bottom, left, right;  // bottom and right are outside

  bool empty() const { return top >= bottom || left >= right; }

  bool has(int64_t y, int64_t x) const { return y >= top && y < bottom && x >= left && x < right; }

  Box grown(int64_t by, int64_t height, int64_t width) const {
    return {std::max<int64_t>(top - by, 0), std::min(bottom + by, height), std::max<int64_t>(left - by, 0),
            std::min(right + by, width)};
  }

  // As a box of whole patches.
  Box even() const { return {top & ~1, (bottom + 1) & ~1, left & ~1, (right + 1) & ~1}; }
};

// Where the mask is not 0.
WORLDENV_INLINE Box box_of(const uint8_t* mask, int64_t height, int64_t width,
                           std::vector<uint8_t>& columns /* [W], room */) {
  Box box{height, 0, width, 0};
  std::fill(columns.begin(), columns.end(), 0);
  for (int64_t y = 0; y < height; ++y, mask += width) {
    uint8_t any = 0;
    for (int64_t x = 0; x < width; ++x) any |= mask[x], columns[x] |= mask[x];
    if (any) box.top = std::min(box.top, y), box.bottom = y + 1;
  }
  for (int64_t x = 0; x < width; ++x)
    if (columns[x]) box.left = std::min(box.left, x), box.right = x + 1;
  return box;
}

// The outputs that read an input in [first, last); NaN reads nothing.
WORLDENV_INLINE void reached(const std::vector<Taps>& taps, int64_t first, int64_t last, int64_t& begin, int64_t& end) {
  begin = int64_t(taps.size()), end = 0;
  for (int64_t x = 0; x < int64_t(taps.size()); ++x)
    for (int n = 0; n < 4; ++n)
      if (taps[x].at[n] >= first && taps[x].at[n] < last && std::fabs(taps[x].weight[n]) > 0)
        begin = std::min(begin, x), end = x + 1;
}

// The layer in the box that it reaches: colour and share * 255, all in [0, 255].
WORLDENV_INLINE Box move_layer(
    const Pixel* thing,  // [H, W], filled 3 pixels further than `from`, as far as one output reads
    const Box& from,     // of the mask
    const Resampling& resampling,
    Pixel* rows,         // [H, W], room
    Pixel* to            // [H, W], written in the box
) {
  const std::vector<Taps>&across = resampling.across, &down = resampling.down;
  const int64_t width = int64_t(across.size());
  Box box;
  reached(down, from.top, from.bottom, box.top, box.bottom);
  reached(across, from.left, from.right, box.left, box.right);
  if (box.empty()) return box;
  for (int64_t y = down[box.top].at[0]; y <= down[box.bottom - 1].at[3]; ++y)
    for (int64_t x = box.left; x < box.right; ++x) {
      Pixel sum{};
      for (int n = 0; n < 4; ++n) sum += across[x].weight[n] * thing[y * width + across[x].at[n]];
      rows[y * width + x] = sum;
    }
  for (int64_t y = box.top; y < box.bottom; ++y)
    for (int64_t x = box.left; x < box.right; ++x) {
      Pixel sum{};
      for (int n = 0; n < 4; ++n) sum += down[y].weight[n] * rows[down[y].at[n] * width + x];
      to[y * width + x] = Vector<4>::between(sum, Pixel{}, Pixel{} + 255.0f);
    }
  return box;
}

}  // namespace worldenv::cpu
