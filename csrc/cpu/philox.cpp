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
