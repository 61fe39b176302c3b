// CPU face of worldenv::adaln and its backward; worldenv/ops/adaln.py says what they mean.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "layer_norm.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrainBytes = 1 << 16;  // a thread is not worth waking for less

// Pointers of one episode; branch, gate, and what is not wanted, are null.
struct Backward {
  const float *grad_sum, *grad_y, *sum, *scale, *branch, *gate;
  float *grad_x, *grad_scale, *grad_shift, *grad_branch, *grad_gate;
  int64_t rows, width;
};

// With z = layer_norm(sum) and dz = grad_y * (1 + scale):
//   grad_sum' = grad_sum + inverse * (dz - mean(dz) - z * mean(dz * z))
template <int Width>
WORLDENV_INLINE void backward(const Backward& g) {
  Vector<Width> value, up, a, b, s;
  for (int64_t n = 0, at = 0; n < g.rows; ++n, at += g.width) {
    float mean, inverse;
    moments<Width>(g.sum + at, g.width, mean, inverse);
    Vector<Width> total, along;
    for (int64_t c = 0; c < g.width; c += Width) {
      const int64_t lanes = g.width - c;
      value.load(g.sum + at + c, lanes);
      up.load(g.grad_y + at + c, lanes);  // zeros beyond the row
      a.load(g.scale + c, lanes);
      value.v = (value.v - mean) * inverse;
      s.load(g.grad_scale + c, lanes);
      s.v += up.v * value.v;
      s.store(g.grad_scale + c, lanes);
      s.load(g.grad_shift + c, lanes);
      s.v += up.v;
      s.store(g.grad_shift + c, lanes);
      up.v *= 1.0f + a.v;
      total.v += up.v;
      along.v += up.v * value.v;
    }
    const float mean_up = total.add_up() / float(g.width), mean_along = along.add_up() / float(g.width);
    for (int64_t c = 0; c < g.width; c += Width) {
      const int64_t lanes = g.width - c;
      value.load(g.sum + at + c, lanes);
      up.load(g.grad_y + at + c, lanes);
      a.load(g.scale + c, lanes);
      b.load(g.grad_sum + at + c, lanes);
      value.v = (value.v - mean) * inverse;
      b.v += inverse * (up.v * (1.0f + a.v) - mean_up - value.v * mean_along);
      b.store(g.grad_x + at + c, lanes);
      if (!g.branch) continue;
      a.load(g.branch + at + c, lanes);
      s.load(g.grad_gate + c, lanes);
      s.v += b.v * a.v;
      s.store(g.grad_gate + c, lanes);
      a.load(g.gate + c, lanes);
      b.v *= a.v;
      b.store(g.grad_branch + at + c, lanes);
    }
  }
}

void forward_plain(const Forward& f) { forward<4>(f); }
void backward_plain(const Backward& g) { backward<4>(g); }
#if WORLDENV_X86
WORLDENV_AVX2 void forward_avx2(const Forward& f) { forward<8>(f); }
WORLDENV_AVX2 void backward_avx2(const Backward& g) { backward<8>(g); }
WORLDENV_AVX512 void forward_avx512(const Forward& f) { forward<16>(f); }
WORLDENV_AVX512 void backward_avx512(const Backward& g) { backward<16>(g); }
#endif

void run(const Forward& f) {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return forward_avx512(f);
  if (isa() == Isa::kAvx2) return forward_avx2(f);
#endif
  forward_plain(f);
}

void run(const Backward& g) {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return backward_avx512(g);
  if (isa() == Isa::kAvx2) return backward_avx2(g);
#endif
  backward_plain(g);
}

void check(const Tensor& tensor, std::initializer_list<int64_t> shape, const char* message) {
  bool same = tensor.scalar_type() == ScalarType::Float && tensor.dim() == int64_t(shape.size());
  int64_t dim = 0;
  for (int64_t size : shape) same = same && tensor.size(dim++) == size;
  STD_TORCH_CHECK(same, message);
}

const float* at(const std::optional<Tensor>& tensor, int64_t offset) {
  return tensor ? tensor->const_data_ptr<float>() + offset : nullptr;
}

std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
}

int64_t grain(int64_t size) { return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, size * 4)); }

}  // namespace

std::tuple<Tensor, Tensor> adaln(
    const Tensor& x_any,                      // [B, N, D] float32
    const Tensor& scale_any,                  // [B, D]
    const Tensor& shift_any,                  // [B, D]
    const std::optional<Tensor>& branch_any,  // [B, N, D]
    const std::optional<Tensor>& gate_any,    // [B, D]
    double step,
    int64_t zero
) {                                           // sum (empty without a branch), y: [B, N, D]
  STD_TORCH_CHECK(x_any.dim() == 3, "x should be [B, N, D]");
  STD_TORCH_CHECK(branch_any.has_value() == gate_any.has_value(), "branch and gate are given together");
  STD_TORCH_CHECK(step >= 0.0 && zero >= 0 && zero <= 255, "step should be positive and zero in [0, 255]");
  const int64_t batch = x_any.size(0), rows = x_any.size(1), width = x_any.size(2), size = rows * width;
  check(x_any, {batch, rows, width}, "x should be float32 [B, N, D]");
  check(scale_any, {batch, width}, "scale should be float32 [B, D]");
  check(shift_any, {batch, width}, "shift should be float32 [B, D]");
  if (branch_any) {
    check(*branch_any, {batch, rows, width}, "branch should be float32 [B, N, D]");
    check(*gate_any, {batch, width}, "gate should be float32 [B, D]");
  }
  const Tensor x = torch::stable::contiguous(x_any), scale = torch::stable::contiguous(scale_any);
  const Tensor shift = torch::stable::contiguous(shift_any);
  const std::optional<Tensor> branch = dense(branch_any), gate = dense(gate_any);
  Tensor sum = branch ? torch::stable::new_empty(x, {batch, rows, width}) : torch::stable::new_empty(x, {0});
  Tensor y = torch::stable::new_empty(x, {batch, rows, width}, step ? ScalarType::Byte : ScalarType::Float);
  const float *x_data = x.const_data_ptr<float>(), *scale_data = scale.const_data_ptr<float>();
  const float* shift_data = shift.const_data_ptr<float>();
  float* sum_data = sum.mutable_data_ptr<float>();
  char* y_data = static_cast<char*>(y.data_ptr());
  const int64_t item = step ? 1 : sizeof(float);
  torch::stable::parallel_for(0, size ? batch : 0, grain(size), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      run(Forward{x_data + b * size, scale_data + b * width, shift_data + b * width, at(branch, b * size),
                  at(gate, b * width), branch ? sum_data + b * size : nullptr, y_data + b * size * item, rows, width,
                  float(step), float(zero)});
  });
  return {sum, y};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> adaln_backward(
    const Tensor& grad_sum_any,               // [B, N, D] float32
    const Tensor& grad_y_any,                 // [B, N, D]
    const Tensor& sum_any,                    // [B, N, D]
    const Tensor& scale_any,                  // [B, D]
    const std::optional<Tensor>& branch_any,  // [B, N, D]
    const std::optional<Tensor>& gate_any     // [B, D]
) {                                           // gradients of x, scale, shift, branch, gate; the last two may be empty
  const int64_t batch = sum_any.size(0), rows = sum_any.size(1), width = sum_any.size(2), size = rows * width;
  for (const Tensor* tensor : {&grad_sum_any, &grad_y_any, &sum_any})
    check(*tensor, {batch, rows, width}, "gradients and sum should be float32 [B, N, D]");
  check(scale_any, {batch, width}, "scale should be float32 [B, D]");
  const Tensor grad_sum = torch::stable::contiguous(grad_sum_any), grad_y = torch::stable::contiguous(grad_y_any);
  const Tensor sum = torch::stable::contiguous(sum_any), scale = torch::stable::contiguous(scale_any);
  const std::optional<Tensor> branch = dense(branch_any), gate = dense(gate_any);
  Tensor grad_x = torch::stable::new_empty(sum, {batch, rows, width});
  Tensor grad_scale = torch::stable::new_zeros(sum, {batch, width});
  Tensor grad_shift = torch::stable::new_zeros(sum, {batch, width});
  Tensor grad_branch = torch::stable::new_empty(sum, {branch ? batch : 0, rows, width});
  Tensor grad_gate = torch::stable::new_zeros(sum, {branch ? batch : 0, width});
  const float *from_sum = grad_sum.const_data_ptr<float>(), *from_y = grad_y.const_data_ptr<float>();
  const float *sum_data = sum.const_data_ptr<float>(), *scale_data = scale.const_data_ptr<float>();
  float *to_x = grad_x.mutable_data_ptr<float>(), *to_scale = grad_scale.mutable_data_ptr<float>();
  float *to_shift = grad_shift.mutable_data_ptr<float>(), *to_branch = grad_branch.mutable_data_ptr<float>();
  float* to_gate = grad_gate.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, size ? batch : 0, grain(size), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      run(Backward{from_sum + b * size, from_y + b * size, sum_data + b * size, scale_data + b * width,
                   at(branch, b * size), at(gate, b * width), to_x + b * size, to_scale + b * width,
                   to_shift + b * width, branch ? to_branch + b * size : nullptr,
                   branch ? to_gate + b * width : nullptr, rows, width});
  });
  return {grad_x, grad_scale, grad_shift, grad_branch, grad_gate};
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "adaln(Tensor x, Tensor scale, Tensor shift, Tensor? branch, Tensor? gate, float step, int zero) -> (Tensor, "
      "Tensor)");
  m.def(
      "adaln_backward(Tensor grad_sum, Tensor grad_y, Tensor sum, Tensor scale, Tensor? branch, Tensor? gate) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) {
  m.impl("adaln", TORCH_BOX(&worldenv::cpu::adaln));
  m.impl("adaln_backward", TORCH_BOX(&worldenv::cpu::adaln_backward));
}
