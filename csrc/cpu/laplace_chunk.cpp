// CPU face of worldenv::laplace_chunk; worldenv/ops/laplace_chunk.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "philox.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 12;  // numbers; a thread is not worth waking for less
constexpr float kLargest = 0.5f - 1e-7f;  // of |u - 1/2|: a draw is finite
constexpr float kLog2 = 0.69314718f;

struct Draw {
  const float *mu, *beta;  // [count]
  float *action, *log_prob;
  int64_t count;
  bool explore;
};

template <int Width>
WORLDENV_INLINE void draw_chunk(const Draw& d, const Counter& counter) {
  alignas(64) float uniform[4 * Width];
  Vector<Width> total;
  for (int64_t i = 0; i < d.count; i += Width) {
    const int64_t lanes = d.count - i, within = i % (4 * Width);
    if (d.explore && !within) block<Width>(counter, uint32_t(i / 4), false, uniform);
    Vector<Width> mu, beta, action, scale, inverse, u, away;
    mu.load(d.mu + i, lanes);
    beta.load(d.beta + i, lanes);
    action.v = mu.v;
    if (d.explore) {
      u.load(uniform + within);
      u.v -= 0.5f;
      away.v = u.v < 0.0f ? -u.v : u.v;
      away.v = away.v > kLargest ? typename Vector<Width>::Floats{} + kLargest : away.v;
      away.v = 1.0f - 2.0f * away.v;
      away.logarithm();  // at most 0
      scale.v = beta.v;
      scale.exponential();
      scale.v *= u.v < 0.0f ? -away.v : away.v;
      action.v = mu.v - scale.v;
    }
    inverse.v = -beta.v;
    inverse.exponential();
    away.v = action.v - mu.v;
    away.v = (away.v < 0.0f ? -away.v : away.v) * inverse.v + beta.v + kLog2;
    away.keep(lanes);
    total.v += away.v;
    action.store(d.action + i, lanes);
  }
  *d.log_prob = -total.add_up();
}

using Function = void (*)(const Draw&, const Counter&);

void draw_chunk_plain(const Draw& d, const Counter& counter) { draw_chunk<4>(d, counter); }
#if WORLDENV_X86
WORLDENV_AVX2 void draw_chunk_avx2(const Draw& d, const Counter& counter) { draw_chunk<8>(d, counter); }
WORLDENV_AVX512 void draw_chunk_avx512(const Draw& d, const Counter& counter) { draw_chunk<16>(d, counter); }
#endif

Function function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return draw_chunk_avx512;
  if (isa() == Isa::kAvx2) return draw_chunk_avx2;
#endif
  return draw_chunk_plain;
}

}  // namespace

std::tuple<Tensor, Tensor> laplace_chunk(
    const Tensor& mu_any,    // [B, K, A] float32
    const Tensor& beta_any,  // [B, K, A] float32
    int64_t seed,
    const Tensor& episode_any,  // [B] int64
    const Tensor& chunk_any,    // [B] int64
    bool explore
) {                             // action [B, K, A], log_prob [B]
  STD_TORCH_CHECK(mu_any.dim() == 3 && mu_any.scalar_type() == ScalarType::Float &&
                      beta_any.scalar_type() == ScalarType::Float && beta_any.sizes().equals(mu_any.sizes()),
                  "mu and beta should be float32 [B, K, A]");
  for (const Tensor* tensor : {&episode_any, &chunk_any})
    STD_TORCH_CHECK(tensor->dim() == 1 && tensor->scalar_type() == ScalarType::Long &&
                        tensor->size(0) == mu_any.size(0),
                    "episode and chunk should be int64 [B]");
  const Tensor mu = torch::stable::contiguous(mu_any), beta = torch::stable::contiguous(beta_any);
  const Tensor episode = torch::stable::contiguous(episode_any), chunk = torch::stable::contiguous(chunk_any);
  const int64_t batch = mu.size(0), count = mu.size(1) * mu.size(2);
  Tensor action = torch::stable::empty_like(mu), log_prob = torch::stable::new_empty(mu, {batch});
  const float *means = mu.const_data_ptr<float>(), *betas = beta.const_data_ptr<float>();
  const int64_t *episodes = episode.const_data_ptr<int64_t>(), *chunks = chunk.const_data_ptr<int64_t>();
  float *to = action.mutable_data_ptr<float>(), *probabilities = log_prob.mutable_data_ptr<float>();
  const Function draw_one = function();
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, count));
  torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      draw_one(Draw{means + b * count, betas + b * count, to + b * count, probabilities + b, count, explore},
               counter_of(seed, episodes[b], chunks[b], 0));  // Use.ACTION
  });
  return {action, log_prob};
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "laplace_chunk(Tensor mu, Tensor beta, int seed, Tensor episode, Tensor chunk, bool explore) -> (Tensor, "
      "Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("laplace_chunk", TORCH_BOX(&worldenv::cpu::laplace_chunk)); }
