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

// A word of 32 bits in each lane of 64, whatever the upper half holds; of every other counter.
template <int Width>
struct Wide {
  typedef uint64_t Words __attribute__((vector_size(4 * Width)));
};

template <int Width>
WORLDENV_INLINE typename Wide<Width>::Words product(typename Wide<Width>::Words x, uint64_t factor) {
  typename Wide<Width>::Words f = typename Wide<Width>::Words{} + factor;
#if WORLDENV_X86
  if (Width >= 8) {
    asm("vpmuludq %1, %0, %0" : "+v"(x) : "v"(f));
    return x;
  }
#endif
  return (x & 0xffffffffu) * f;
}

// words[i] <- word i of the counters first, first + 2, ..
template <int Width>
WORLDENV_INLINE void rounds(const Counter& counter, uint64_t first, typename Wide<Width>::Words (&words)[4]) {
  using Words = typename Wide<Width>::Words;
  uint32_t key[2] = {counter.key[0], counter.key[1]};
  for (int l = 0; l < Width / 2; ++l) words[0][l] = first + 2 * uint64_t(l);
  words[1] = Words{} + counter.use;
  words[2] = Words{} + counter.episode[0];
  words[3] = Words{} + counter.episode[1];
  for (int round = 0; round < kRounds; ++round, key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u) {
    const Words even = product<Width>(words[0], 0xD2511F53u), odd = product<Width>(words[2], 0xCD9E8D57u);
    words[0] = (odd >> 32) ^ words[1] ^ uint64_t(key[0]);
    words[2] = (even >> 32) ^ words[3] ^ uint64_t(key[1]);
    words[1] = odd;
    words[3] = even;
  }
}

// out[4 l + i] <- u[i][l]
template <int Width>
WORLDENV_INLINE void interleave(const Vector<Width> (&u)[4], float* out) {
#if WORLDENV_X86
  if (Width == 16) {
    alignas(64) float four[4][Width];  // four[i]: the numbers of the counters i, i + 4, ..
    typename Vector<Width>::Floats low[2], high[2], x;
    for (int i = 0; i < 2; ++i) {
      asm("vunpcklps %2, %1, %0" : "=v"(low[i]) : "v"(u[2 * i].v), "v"(u[2 * i + 1].v));
      asm("vunpckhps %2, %1, %0" : "=v"(high[i]) : "v"(u[2 * i].v), "v"(u[2 * i + 1].v));
    }
    asm("vunpcklpd %2, %1, %0" : "=v"(x) : "v"(low[0]), "v"(low[1]));
    __builtin_memcpy(four[0], &x, sizeof(x));
    asm("vunpckhpd %2, %1, %0" : "=v"(x) : "v"(low[0]), "v"(low[1]));
    __builtin_memcpy(four[1], &x, sizeof(x));
    asm("vunpcklpd %2, %1, %0" : "=v"(x) : "v"(high[0]), "v"(high[1]));
    __builtin_memcpy(four[2], &x, sizeof(x));
    asm("vunpckhpd %2, %1, %0" : "=v"(x) : "v"(high[0]), "v"(high[1]));
    __builtin_memcpy(four[3], &x, sizeof(x));
    for (int l = 0; l < Width; ++l) __builtin_memcpy(out + 4 * l, &four[l % 4][l / 4 * 4], 4 * sizeof(float));
    return;
  }
#endif
  for (int l = 0; l < Width; ++l)
    for (int i = 0; i < 4; ++i) out[4 * l + i] = u[i].v[l];
}

// 4 * Width numbers of consecutive places.
template <int Width>
WORLDENV_INLINE void block(const Counter& counter, uint32_t first, bool normal, float* out) {
  typename Wide<Width>::Words even[4], odd[4];
  rounds<Width>(counter, first, even);
  rounds<Width>(counter, uint64_t(first) + 1, odd);
  Vector<Width> u[4], cosine, sine;
  for (int i = 0; i < 4; ++i) {
    const auto bits = (even[i] >> 8 & 0xffffffu) | (odd[i] >> 8 & 0xffffffu) << 32;
    u[i].v = __builtin_convertvector((typename Vector<Width>::Ints)bits, typename Vector<Width>::Floats) * kUnit;
  }
  for (int i = 0; normal && i < 4; i += 2) {
    u[i].v += kUnit;
    u[i].logarithm();
    u[i].v *= -2.0f;
    u[i].square_root();
    u[i + 1].turn(cosine, sine);
    u[i + 1].v = u[i].v * sine.v;
    u[i].v *= cosine.v;
  }
  interleave<Width>(u, out);
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
