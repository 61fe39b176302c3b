// CPU face of worldenv::ppo_loss; worldenv/ops/ppo_loss.py says what it means.
// A chunk is read once: what the sum needs of it is what its gradient needs, but for the slope.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "vector.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 14;  // numbers; a thread is not worth waking for less
constexpr float kFarthest = 20.0f;   // of a log-ratio: exp stays finite
constexpr float kLog2 = 0.69314718f;

struct Chunk {
  const float *mu, *beta, *action;  // [count]
  float behaviour, advantage, clip, share;  // share: of a chunk in the mean
  float *to_mu, *to_beta;
  int64_t count;
};

struct Term {
  float loss;  // of the sum
  bool clipped;
};

template <int Width>
WORLDENV_INLINE Term learn(const Chunk& c) {
  Vector<Width> mu, beta, action, total;
  for (int64_t i = 0; i < c.count; i += Width) {
    const int64_t lanes = c.count - i;
    mu.load(c.mu + i, lanes);
    beta.load(c.beta + i, lanes);
    action.load(c.action + i, lanes);
    Vector<Width> inverse, away;
    inverse.v = -beta.v;
    inverse.exponential();
    mu.v -= action.v;
    away.v = (mu.v < 0.0f ? -mu.v : mu.v) * inverse.v;
    inverse.v = mu.v > 0.0f ? -inverse.v : inverse.v;
    inverse.v = mu.v == 0.0f ? typename Vector<Width>::Floats{} : inverse.v;
    inverse.store(c.to_mu + i, lanes);  // of the log-probability; times the slope, of the loss
    mu.v = away.v - 1.0f;
    mu.store(c.to_beta + i, lanes);
    away.v += beta.v + kLog2;
    away.keep(lanes);
    total.v += away.v;
  }
  const float log_ratio = -total.add_up() - c.behaviour;
  const float ratio = std::exp(std::clamp(log_ratio, -kFarthest, kFarthest));
  const float clipped = std::clamp(ratio, 1.0f - c.clip, 1.0f + c.clip);
  const float free = ratio * c.advantage, bound = clipped * c.advantage;
  const bool passes = free <= bound && std::abs(log_ratio) <= kFarthest;
  const float slope = passes ? -free * c.share : 0.0f;
  for (int64_t i = 0; i < c.count; i += Width) {
    mu.load(c.to_mu + i, c.count - i);
    beta.load(c.to_beta + i, c.count - i);
    mu.v *= slope;
    beta.v *= slope;
    mu.store(c.to_mu + i, c.count - i);
    beta.store(c.to_beta + i, c.count - i);
  }
  return {free <= bound ? -free : -bound, ratio != clipped};
}

using Function = Term (*)(const Chunk&);

Term learn_plain(const Chunk& c) { return learn<4>(c); }
#if WORLDENV_X86
WORLDENV_AVX2 Term learn_avx2(const Chunk& c) { return learn<8>(c); }
WORLDENV_AVX512 Term learn_avx512(const Chunk& c) { return learn<16>(c); }
#endif

Function function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return learn_avx512;
  if (isa() == Isa::kAvx2) return learn_avx2;
#endif
  return learn_plain;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> ppo_loss(
    const Tensor& mu_any,         // [B, K, A] float32
    const Tensor& beta_any,       // [B, K, A]
    const Tensor& action_any,     // [B, K, A]
    const Tensor& behaviour_any,  // [B]
    const Tensor& advantage_any,  // [B]
    double clip
) {                               // loss [], share of clipped ratios [], gradients of mu and beta [B, K, A]
  for (const Tensor* tensor : {&mu_any, &beta_any, &action_any})
    STD_TORCH_CHECK(tensor->dim() == 3 && tensor->scalar_type() == ScalarType::Float &&
                        tensor->sizes().equals(mu_any.sizes()),
                    "mu, beta and action should be float32 [B, K, A]");
  const int64_t batch = mu_any.size(0), count = mu_any.size(1) * mu_any.size(2);
  for (const Tensor* tensor : {&behaviour_any, &advantage_any})
    STD_TORCH_CHECK(tensor->dim() == 1 && tensor->scalar_type() == ScalarType::Float && tensor->size(0) == batch,
                    "behaviour and advantage should be float32 [B]");
  STD_TORCH_CHECK(batch > 0 && clip > 0.0 && clip < 1.0, "there should be a chunk, and clip be in (0, 1)");
  const auto dense = [](const Tensor& tensor) { return torch::stable::contiguous(tensor); };
  const Tensor mu = dense(mu_any), beta = dense(beta_any), action = dense(action_any);
  const Tensor behaviour = dense(behaviour_any), advantage = dense(advantage_any);
  Tensor loss = torch::stable::new_empty(mu, {}), share = torch::stable::new_empty(mu, {});
  Tensor grad_mu = torch::stable::empty_like(mu), grad_beta = torch::stable::empty_like(mu);
  const float *means = mu.const_data_ptr<float>(), *betas = beta.const_data_ptr<float>();
  const float *actions = action.const_data_ptr<float>(), *before = behaviour.const_data_ptr<float>();
  const float* advantages = advantage.const_data_ptr<float>();
  float *to_mu = grad_mu.mutable_data_ptr<float>(), *to_beta = grad_beta.mutable_data_ptr<float>();
  const Function learn_one = function();
  std::vector<Term> terms(batch);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, count));
  torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t at = b * count;
      terms[b] = learn_one(Chunk{means + at, betas + at, actions + at, before[b], advantages[b], float(clip),
                                 1.0f / float(batch), to_mu + at, to_beta + at, count});
    }
  });
  double total = 0.0, clipped = 0.0;  // in the order of the chunks, whatever the threads
  for (const Term& term : terms) total += term.loss, clipped += term.clipped;
  *loss.mutable_data_ptr<float>() = float(total / double(batch));
  *share.mutable_data_ptr<float>() = float(clipped / double(batch));
  return {loss, share, grad_mu, grad_beta};
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "ppo_loss(Tensor mu, Tensor beta, Tensor action, Tensor behaviour, Tensor advantage, float clip) -> (Tensor, "
      "Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("ppo_loss", TORCH_BOX(&worldenv::cpu::ppo_loss)); }
