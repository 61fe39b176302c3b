#include <torch/csrc/stable/library.h>
STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def("reward_head(Tensor feature, Tensor first, Tensor(a!) total, Tensor(b!) count, Tensor gain, Tensor shift, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor weight3, Tensor bias3, float threshold) -> (Tensor, Tensor)");
}
