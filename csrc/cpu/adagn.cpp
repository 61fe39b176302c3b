// CPU face of worldenv::adagn; worldenv/ops/adagn.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "norm.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrainBytes = 1 << 18;  // a thread is not worth waking for less

using Function = void (*)(const float*, const Condition&, void*, float*, const Norm&);

void normalise_plain(const float* x, const Condition& condition, void* y, float* room, const Norm& norm) {
  normalise<4>(x, condition, y, room, norm);
}
#if WORLDENV_X86
WORLDENV_AVX2 void normalise_avx2(const float* x, const Condition& condition, void* y, float* room, const Norm& norm) {
  normalise<8>(x, condition, y, room, norm);
}
WORLDENV_AVX512 void normalise_avx512(const float* x, const Condition& condition, void* y, float* room,
                                      const Norm& norm) {
  normalise<16>(x, condition, y, room, norm);
}
#endif

Function function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return normalise_avx512;
  if (isa() == Isa::kAvx2) return normalise_avx2;
#endif
  return normalise_plain;
}

}  // namespace

Tensor adagn(
    const Tensor& x_any,                       // [B, H, W, C] float32
    int64_t groups,
    const Tensor& weight_any,                  // [C]
    const Tensor& bias_any,                    // [C]
    const std::optional<Tensor>& scale_any,    // [B, C]
    const std::optional<Tensor>& shift_any,    // [B, C]
    const std::string& activation,
    double eps
) {                                            // [B, H, W, C] float32
  STD_TORCH_CHECK(x_any.dim() == 4 && x_any.scalar_type() == ScalarType::Float, "x should be float32 [B, H, W, C]");
  const Tensor x = torch::stable::contiguous(x_any), weight = torch::stable::contiguous(weight_any);
  const Tensor bias = torch::stable::contiguous(bias_any);
  const int64_t batch = x.size(0), channels = x.size(3);
  const Norm norm{x.size(1), x.size(2), channels, groups, float(eps), activation_of(activation),
                  0.0f, 0.0f, x.size(2) * channels};
  STD_TORCH_CHECK(activation == "none" || activation == "relu" || activation == "silu",
                  "activation should be none, relu or silu");
  STD_TORCH_CHECK(groups > 0 && channels % groups == 0, "groups should divide the channels");
  STD_TORCH_CHECK(scale_any.has_value() == shift_any.has_value(), "scale and shift are given together");
  for (const Tensor* tensor : {&weight, &bias})
    STD_TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == channels && tensor->scalar_type() == ScalarType::Float,
                    "weight and bias should be float32 [C]");
  std::optional<Tensor> scale, shift;
  if (scale_any) {
    scale = torch::stable::contiguous(*scale_any), shift = torch::stable::contiguous(*shift_any);
    for (const Tensor* tensor : {&*scale, &*shift})
      STD_TORCH_CHECK(tensor->dim() == 2 && tensor->size(0) == batch && tensor->size(1) == channels &&
                          tensor->scalar_type() == ScalarType::Float,
                      "scale and shift should be float32 [B, C]");
  }

  Tensor y = torch::stable::new_empty(x, {batch, x.size(1), x.size(2), channels});
  const float *from = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
  const float* gain = scale ? scale->const_data_ptr<float>() : nullptr;
  const float* more = shift ? shift->const_data_ptr<float>() : nullptr;
  float* to = y.mutable_data_ptr<float>();
  const Function normalise_one = function();
  const int64_t size = norm.lines * norm.line();
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, size * int64_t(sizeof(float))));
  torch::stable::parallel_for(0, size ? batch : 0, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> room(3 * norm.period(16));
    for (int64_t i = begin; i < end; ++i) {
      const Condition condition{w, b, gain ? gain + i * channels : nullptr, more ? more + i * channels : nullptr};
      normalise_one(from + i * size, condition, to + i * size, room.data(), norm);
    }
  });
  return y;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "adagn(Tensor rows, int groups, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, str activation, "
      "float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("adagn", TORCH_BOX(&worldenv::cpu::adagn)); }
