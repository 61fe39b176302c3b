// CPU face of worldenv::adagn; worldenv/ops/adagn.py says what it means.
// Channels last: sums over the positions of one episode, a channel a lane; then each channel's normalisation, scale and
// shift have become one factor and one summand.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "vector.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

enum class Activation { kNone, kRelu, kSilu };

constexpr int64_t kGrainBytes = 1 << 18;  // a thread is not worth waking for less

struct Norm {
  int64_t positions, channels, groups;
  float eps;
  Activation activation;
  float step, zero;  // of the grid of the result; step 0: none
};

template <int Width, Activation kActivation>
WORLDENV_INLINE void apply(const float* x, const float* factor, const float* summand, void* y, const Norm& norm) {
  Vector<Width> value, a, b, e;
  const float inverse = norm.step ? 1.0f / norm.step : 0.0f;
  for (int64_t p = 0, at = 0; p < norm.positions; ++p, x += norm.channels, at += norm.channels)
    for (int64_t c = 0; c < norm.channels; c += Width) {
      const int64_t lanes = norm.channels - c;
      value.load(x + c, lanes);
      a.load(factor + c, lanes);
      b.load(summand + c, lanes);
      value.v = value.v * a.v + b.v;
      if (kActivation == Activation::kRelu) value.v = value.v < 0.0f ? value.v * 0.0f : value.v;
      if (kActivation == Activation::kSilu) {
        e.v = -value.v;
        e.exponential();
        value.v = value.v / (1.0f + e.v);
      }
      if (norm.step) value.store_levels(static_cast<uint8_t*>(y) + at + c, lanes, inverse, norm.zero);
      else value.store(static_cast<float*>(y) + at + c, lanes);
    }
}

// One episode. Sums are taken from the first position's values, so that a large mean costs no precision.
template <int Width>
WORLDENV_INLINE void normalise(
    const float* x,       // [P, C]
    const float* weight,  // [C]
    const float* bias,    // [C]
    const float* scale,   // [C] or null
    const float* shift,   // [C] or null
    void* y,              // [P, C] float, or uint8_t on a grid
    float* room,          // [3, C]
    const Norm& norm
) {
  float *sum = room, *square = room + norm.channels, *first = room + 2 * norm.channels;
  const int64_t each = norm.channels / norm.groups;
  for (int64_t c = 0; c < norm.channels; ++c) sum[c] = square[c] = 0.0f, first[c] = x[c / each * each];
  Vector<Width> value, origin, s, q;
  for (int64_t p = 0; p < norm.positions; ++p)
    for (int64_t c = 0; c < norm.channels; c += Width) {
      const int64_t lanes = norm.channels - c;
      value.load(x + p * norm.channels + c, lanes);
      origin.load(first + c, lanes);
      s.load(sum + c, lanes);
      q.load(square + c, lanes);
      value.v -= origin.v;
      s.v += value.v;
      q.v += value.v * value.v;
      s.store(sum + c, lanes);
      q.store(square + c, lanes);
    }
  for (int64_t g = 0; g < norm.channels; g += each) {
    double total = 0.0, squares = 0.0;
    for (int64_t c = g; c < g + each; ++c) total += sum[c], squares += square[c];
    const double count = double(norm.positions * each), mean = total / count;
    const double variance = std::max(squares / count - mean * mean, 0.0);
    const float inverse = float(1.0 / std::sqrt(variance + norm.eps)), centre = float(mean) + first[g];
    for (int64_t c = g; c < g + each; ++c) {
      const float gain = scale ? 1.0f + scale[c] : 1.0f;
      sum[c] = inverse * weight[c] * gain;
      square[c] = (bias[c] - centre * inverse * weight[c]) * gain + (shift ? shift[c] : 0.0f);
    }
  }
  if (norm.activation == Activation::kSilu) apply<Width, Activation::kSilu>(x, sum, square, y, norm);
  else if (norm.activation == Activation::kRelu) apply<Width, Activation::kRelu>(x, sum, square, y, norm);
  else apply<Width, Activation::kNone>(x, sum, square, y, norm);
}

using Function = void (*)(const float*, const float*, const float*, const float*, const float*, void*, float*,
                          const Norm&);

void normalise_plain(const float* x, const float* weight, const float* bias, const float* scale, const float* shift,
                     void* y, float* room, const Norm& norm) {
  normalise<4>(x, weight, bias, scale, shift, y, room, norm);
}
#if WORLDENV_X86
WORLDENV_AVX2 void normalise_avx2(const float* x, const float* weight, const float* bias, const float* scale,
                                  const float* shift, void* y, float* room, const Norm& norm) {
  normalise<8>(x, weight, bias, scale, shift, y, room, norm);
}
WORLDENV_AVX512 void normalise_avx512(const float* x, const float* weight, const float* bias, const float* scale,
                                      const float* shift, void* y, float* room, const Norm& norm) {
  if (norm.channels % 16 == 0) normalise<16>(x, weight, bias, scale, shift, y, room, norm);
  else normalise<8>(x, weight, bias, scale, shift, y, room, norm);  // 40 channels: no tail
}
#endif

Function function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return normalise_avx512;
  if (isa() == Isa::kAvx2) return normalise_avx2;
#endif
  return normalise_plain;
}

Activation activation_of(const std::string& name) {
  STD_TORCH_CHECK(name == "none" || name == "relu" || name == "silu", "activation should be none, relu or silu");
  return name == "silu" ? Activation::kSilu : name == "relu" ? Activation::kRelu : Activation::kNone;
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
    double eps,
    double step,
    int64_t zero
) {                                            // [B, H, W, C] float32, or uint8 on a grid
  STD_TORCH_CHECK(x_any.dim() == 4 && x_any.scalar_type() == ScalarType::Float, "x should be float32 [B, H, W, C]");
  const Tensor x = torch::stable::contiguous(x_any), weight = torch::stable::contiguous(weight_any);
  const Tensor bias = torch::stable::contiguous(bias_any);
  const int64_t batch = x.size(0), channels = x.size(3);
  const Norm norm{x.size(1) * x.size(2), channels, groups, float(eps), activation_of(activation),
                  float(step), float(zero)};
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

  STD_TORCH_CHECK(step >= 0.0 && zero >= 0 && zero <= 255, "step should be positive and zero in [0, 255]");
  Tensor y = torch::stable::new_empty(x, {batch, x.size(1), x.size(2), channels},
                                      step ? ScalarType::Byte : ScalarType::Float);
  const float *from = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
  const float* gain = scale ? scale->const_data_ptr<float>() : nullptr;
  const float* more = shift ? shift->const_data_ptr<float>() : nullptr;
  char* to = static_cast<char*>(y.data_ptr());
  const int64_t item = step ? 1 : sizeof(float);
  const Function normalise_one = function();
  const int64_t size = norm.positions * channels;
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, size * int64_t(sizeof(float))));
  torch::stable::parallel_for(0, size ? batch : 0, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> room(3 * channels);
    for (int64_t i = begin; i < end; ++i)
      normalise_one(from + i * size, w, b, gain ? gain + i * channels : nullptr, more ? more + i * channels : nullptr,
                    to + i * size * item, room.data(), norm);
  });
  return y;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "adagn(Tensor rows, int groups, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, str activation, "
      "float eps, float step, int zero) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("adagn", TORCH_BOX(&worldenv::cpu::adagn)); }
