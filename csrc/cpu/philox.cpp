// CPU face of worldenv::philox; worldenv/ops/philox.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

#include "philox.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 14;  // numbers; a thread is not worth waking for less

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
      const Counter counter = counter_of(seed, episodes[b], chunks[b], use);
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
