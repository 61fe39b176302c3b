#include <torch/csrc/stable/library.h>
STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def("denoise_step(Tensor noisy, Tensor velocity, float t, float t_next, int seed, Tensor episode, Tensor chunk, int use) -> Tensor");
  m.def("laplace_chunk(Tensor mu, Tensor beta, int seed, Tensor episode, Tensor chunk, bool explore) -> (Tensor, Tensor)");
  m.def("reward_head(Tensor feature, Tensor first, Tensor(a!) total, Tensor(b!) count, Tensor gain, Tensor shift, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor weight3, Tensor bias3, float threshold) -> (Tensor, Tensor)");
  m.def("ppo_loss(Tensor mu, Tensor beta, Tensor action, Tensor behaviour, Tensor advantage, float clip) -> (Tensor, Tensor, Tensor, Tensor)");
}
