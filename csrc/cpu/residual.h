// A residual block in 8 bits of one episode; worldenv/ops/residual_int8.py says what it means.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dot.h"
#include "norm.h"

namespace worldenv::cpu {

constexpr int64_t kShuffle = 4;  // places of a coarse position

struct Block {
  int64_t height, width, channels, beside, outputs;  // `beside` of the channels come from `more`
  Packed conv1, conv2, skip;                         // skip without weights: none
  Norm before, between;                              // before with groups 0: only onto its grid
  float skip_step, skip_zero;                        // of the grid of skip
};

struct Episode {
  const float *x, *more;
  Condition before, between;
  float* y;
};

struct BlockRoom {
  std::vector<float> whole, hidden, sums;
  std::vector<uint8_t> first, second, flat;  // the first two with a border
};

// x and what is beside it, moved from depth to space.
inline void join(const Block& block, const Episode& episode, float* whole) {
  const int64_t own = block.channels - block.beside;
  const float* x = episode.x;
  for (int64_t y = 0; y < block.height; ++y)
    for (int64_t p = 0; p < block.width; ++p, x += own, whole += block.channels) {
      const int64_t coarse = y / 2 * (block.width / 2) + p / 2, sub = y % 2 * 2 + p % 2;
      const float* more = episode.more + coarse * block.beside * kShuffle + sub;
      std::copy(x, x + own, whole);
      for (int64_t c = 0; c < block.beside; ++c) whole[own + c] = more[c * kShuffle];
    }
}

template <int Width, bool kFast>
WORLDENV_INLINE void run_block(const Block& block, const Episode& episode, BlockRoom& room) {
  const int64_t height = block.height, width = block.width, c = block.channels, o = block.outputs;
  const int64_t border = block.conv1.rows / 2, pitch1 = (width + 2 * border) * c, pitch2 = (width + 2 * border) * o;
  const float* x = episode.x;
  if (episode.more) {
    join(block, episode, room.whole.data());
    x = room.whole.data();
  }
  uint8_t *inner1 = room.first.data() + border * (pitch1 + c), *inner2 = room.second.data() + border * (pitch2 + o);
  if (block.before.groups) normalise<Width>(x, episode.before, inner1, room.sums.data(), block.before);
  else to_levels<Width>(x, height, width * c, block.before.step, block.before.zero, inner1, pitch1);
  multiply<Width, kFast>(block.conv1, {room.first.data(), c, pitch1, pitch1, height, width}, room.hidden.data());
  normalise<Width>(room.hidden.data(), episode.between, inner2, room.sums.data(), block.between);
  if (block.skip.weights) {
    to_levels<Width>(x, 1, height * width * c, block.skip_step, block.skip_zero, room.flat.data(), 0);
    multiply<Width, kFast>(block.skip, {room.flat.data(), c, 0, 0, 1, height * width}, episode.y);
    x = episode.y;
  }
  multiply<Width, kFast>(
      block.conv2, {room.second.data(), o, pitch2, pitch2, height, width},
      [&](Vector<Width>& sum, int64_t place, int64_t lane, int64_t lanes) WORLDENV_INLINE_LAMBDA {
        Vector<Width> beside;
        beside.load(x + place + lane, lanes);
        sum.v += beside.v;
        sum.store(episode.y + place + lane, lanes);
      });
}

inline BlockRoom room_of(const Block& block, bool joins) {
  const int64_t positions = block.height * block.width, border = block.conv1.rows / 2;
  const int64_t bordered = (block.height + 2 * border) * (block.width + 2 * border);
  return {std::vector<float>(joins ? positions * block.channels : 0), std::vector<float>(positions * block.outputs),
          std::vector<float>(3 * std::max(block.before.period(16), block.between.period(16))),
          std::vector<uint8_t>(bordered * block.channels, uint8_t(block.before.zero)),
          std::vector<uint8_t>(bordered * block.outputs, uint8_t(block.between.zero)),
          std::vector<uint8_t>(block.skip.weights ? positions * block.channels : 0)};
}

}  // namespace worldenv::cpu
