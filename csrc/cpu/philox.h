// Counter-based random numbers (Philox4x32-10), whose meaning is in worldenv/ops/philox.py.
// A counter a lane: the ten rounds and the transformation to normal numbers run over Width counters side by side.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vector.h"

namespace worldenv::cpu {

constexpr int kRounds = 10;
constexpr float kUnit = 1.0f / 16777216.0f;  // 2^-24

struct Counter {
  uint32_t key[2], use, episode[2];
};

inline Counter counter_of(int64_t seed, int64_t episode, int64_t chunk, int64_t use) {
  const uint64_t key = uint64_t(seed), id = uint64_t(episode);
  return {{uint32_t(key), uint32_t(key >> 32)}, uint32_t(chunk * 256 + use), {uint32_t(id), uint32_t(id >> 32)}};
}

// words[i][l] <- word i of the counter first + l.
template <int Width>
WORLDENV_INLINE void rounds(const Counter& counter, uint32_t first, uint32_t (&words)[4][Width]) {
  uint32_t key[2] = {counter.key[0], counter.key[1]};
  for (int l = 0; l < Width; ++l) {
    words[0][l] = first + uint32_t(l);
    words[1][l] = counter.use;
    words[2][l] = counter.episode[0];
    words[3][l] = counter.episode[1];
  }
  for (int round = 0; round < kRounds; ++round, key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u)
    for (int l = 0; l < Width; ++l) {
      const uint64_t even = uint64_t(0xD2511F53u) * words[0][l], odd = uint64_t(0xCD9E8D57u) * words[2][l];
      words[0][l] = uint32_t(odd >> 32) ^ words[1][l] ^ key[0];
      words[2][l] = uint32_t(even >> 32) ^ words[3][l] ^ key[1];
      words[1][l] = uint32_t(odd);
      words[3][l] = uint32_t(even);
    }
}

template <int Width>
WORLDENV_INLINE void to_uniform(const uint32_t (&words)[Width], Vector<Width>& u) {
  typename Vector<Width>::Ints bits;
  for (int l = 0; l < Width; ++l) bits[l] = int32_t(words[l] >> 8);
  u.v = __builtin_convertvector(bits, typename Vector<Width>::Floats) * kUnit;
}

// 4 * Width numbers of consecutive places.
template <int Width>
WORLDENV_INLINE void block(const Counter& counter, uint32_t first, bool normal, float* out) {
  alignas(64) uint32_t words[4][Width];
  rounds<Width>(counter, first, words);
  Vector<Width> u[4], cosine, sine;
  for (int i = 0; i < 4; ++i) to_uniform<Width>(words[i], u[i]);
  for (int i = 0; normal && i < 4; i += 2) {
    u[i].v += kUnit;
    u[i].logarithm();
    u[i].v *= -2.0f;
    u[i].square_root();
    u[i + 1].turn(cosine, sine);
    u[i + 1].v = u[i].v * sine.v;
    u[i].v *= cosine.v;
  }
  for (int l = 0; l < Width; ++l)
    for (int i = 0; i < 4; ++i) out[4 * l + i] = u[i].v[l];
}

template <int Width>
WORLDENV_INLINE void draw(const Counter& counter, bool normal, int64_t begin, int64_t end, float* out) {
  constexpr int64_t kBlock = 4 * Width;
  alignas(64) float rest[kBlock];
  for (int64_t place = begin; place < end; place += kBlock) {
    const bool whole = place + kBlock <= end;
    block<Width>(counter, uint32_t(place / 4), normal, whole ? out + place : rest);
    if (!whole) std::copy(rest, rest + (end - place), out + place);
  }
}

}  // namespace worldenv::cpu
