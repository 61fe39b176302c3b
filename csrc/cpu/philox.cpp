// CPU face of worldenv::philox; worldenv/ops/philox.py says what it means.
// A counter a lane: the ten rounds and the transformation to normal numbers run over Width counters side by side.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

#include "vector.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kRounds = 10;
constexpr int64_t kGrain = 1 << 14;  // numbers; a thread is not worth waking for less
constexpr float kUnit = 1.0f / 16777216.0f;  // 2^-24

struct Counter {
  uint32_t key[2], use, episode[2];
};

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

using Function = void (*)(const Counter&, bool, int64_t, int64_t, float*);

void draw_plain(const Counter& counter, bool normal, int64_t begin, int64_t end, float* out) {
  draw<4>(counter, normal, begin, end, out);
}
#if WORLDENV_X86
WORLDENV_AVX2 void draw_avx2(const Counter& counter, bool normal, int64_t begin, int64_t end, float* out) {
  draw<8>(counter, normal, begin, end, out);
}
WORLDENV_AVX512 void draw_avx512(const Counter& counter, bool normal, int64_t begin, int64_t end, float* out) {
  draw<16>(counter, normal, begin, end, out);
}
#endif

Function function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return draw_avx512;
  if (isa() == Isa::kAvx2) return draw_avx2;
#endif
  return draw_plain;
}

}  // namespace

Tensor philox(
    int64_t seed,
    const Tensor& episode_any,  // [B] int64
    const Tensor& chunk_any,    // [B] int64
    int64_t use,
    int64_t count,
    bool normal
) {                             // [B, count] float32
  for (const Tensor* tensor : {&episode_any, &chunk_any})
    STD_TORCH_CHECK(tensor->dim() == 1 && tensor->scalar_type() == ScalarType::Long &&
                        tensor->size(0) == episode_any.size(0),
                    "episode and chunk should be int64 [B]");
  STD_TORCH_CHECK(count >= 0 && count / 4 < (int64_t(1) << 32), "count should lie in [0, 2^34)");
  const Tensor episode = torch::stable::contiguous(episode_any), chunk = torch::stable::contiguous(chunk_any);
  const int64_t batch = episode.size(0);
  Tensor out = torch::stable::new_empty(episode, {batch, count}, ScalarType::Float);
  const int64_t *episodes = episode.const_data_ptr<int64_t>(), *chunks = chunk.const_data_ptr<int64_t>();
  float* to = out.mutable_data_ptr<float>();
  const Function draw_range = function();
  const int64_t parts = (count + kGrain - 1) / kGrain;  // kGrain is a multiple of every block
  torch::stable::parallel_for(0, batch * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / parts, from = i % parts * kGrain;
      const uint64_t id = uint64_t(episodes[b]), key = uint64_t(seed);
      const Counter counter{{uint32_t(key), uint32_t(key >> 32)}, uint32_t(chunks[b] * 256 + use),
                            {uint32_t(id), uint32_t(id >> 32)}};
      draw_range(counter, normal, from, std::min(from + kGrain, count), to + b * count);
    }
  });
  return out;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def("philox(int seed, Tensor episode, Tensor chunk, int use, int count, bool normal) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("philox", TORCH_BOX(&worldenv::cpu::philox)); }
