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
#include "stored.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrainBytes = 1 << 16;  // a thread is not worth waking for less

// Pointers of one episode; branch, gate, and what is not wanted, are null.
template <class T>
struct Backward {
  const T *grad_sum, *grad_y, *sum, *scale, *branch, *gate;
  T *grad_x, *grad_branch;
  float *grad_scale, *grad_shift, *grad_gate;  // sums over rows, from 0
  int64_t rows, width;
  float* room;  // [D]
};

// With z = layer_norm(sum) and dz = grad_y * (1 + scale):
//   grad_sum' = grad_sum + inverse * (dz - mean(dz) - z * mean(dz * z))
template <int Width, class T>
WORLDENV_INLINE void backward(const Backward<T>& g) {
  Vector<Width> value, up, a, b, s;
  for (int64_t n = 0, at = 0; n < g.rows; ++n, at += g.width) {
    const Forward<T> saved{g.sum, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, g.width, 0.0f, 0.0f, g.room};
    const float* row = sum_row<Width>(saved, at);
    float mean, inverse;
    moments<Width>(row, g.width, mean, inverse);
    Vector<Width> total, along;
    for (int64_t c = 0; c < g.width; c += Width) {
      const int64_t lanes = g.width - c;
      value.load(row + c, lanes);
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
      value.load(row + c, lanes);
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

template <class T>
void forward_plain(const Forward<T>& f) { forward<4>(f); }
template <class T>
void backward_plain(const Backward<T>& g) { backward<4>(g); }
#if WORLDENV_X86
template <class T>
WORLDENV_AVX2 void forward_avx2(const Forward<T>& f) { forward<8>(f); }
template <class T>
WORLDENV_AVX2 void backward_avx2(const Backward<T>& g) { backward<8>(g); }
template <class T>
WORLDENV_AVX512 void forward_avx512(const Forward<T>& f) { forward<16>(f); }
template <class T>
WORLDENV_AVX512 void backward_avx512(const Backward<T>& g) { backward<16>(g); }
#endif

template <class T>
void run(const Forward<T>& f) {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return forward_avx512(f);
  if (isa() == Isa::kAvx2) return forward_avx2(f);
#endif
  forward_plain(f);
}

template <class T>
void run(const Backward<T>& g) {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return backward_avx512(g);
  if (isa() == Isa::kAvx2) return backward_avx2(g);
#endif
  backward_plain(g);
}

void check(const Tensor& tensor, ScalarType dtype, std::initializer_list<int64_t> shape, const char* message) {
  bool same = tensor.scalar_type() == dtype && tensor.dim() == int64_t(shape.size());
  int64_t dim = 0;
  for (int64_t size : shape) same = same && tensor.size(dim++) == size;
  STD_TORCH_CHECK(same, message);
}

template <class T>
T* at(const std::optional<Tensor>& tensor, int64_t offset = 0) {
  return tensor ? static_cast<T*>(tensor->data_ptr()) + offset : nullptr;
}

std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
}

int64_t grain(int64_t size) { return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, size * 4)); }

// Episodes of [N, D], side by side.
template <class T>
void forward_all(
    const Tensor& x, const Tensor& scale, const Tensor& shift, const std::optional<Tensor>& branch,
    const std::optional<Tensor>& gate, Tensor& sum, Tensor& y
) {
  const int64_t batch = x.size(0), rows = x.size(1), width = x.size(2), size = rows * width;
  const Forward<T> first{at<T>(x), at<T>(scale), at<T>(shift), at<T>(branch), at<T>(gate), at<T>(sum), at<T>(y),
                         rows, width, 0.0f, 0.0f};
  torch::stable::parallel_for(0, size ? batch : 0, grain(size), [&](int64_t begin, int64_t end) {
    std::vector<float> room(width);
    for (int64_t b = begin; b < end; ++b) {
      Forward<T> f = first;
      f.x += b * size, f.scale += b * width, f.shift += b * width, f.room = room.data();
      f.y = static_cast<T*>(f.y) + b * size;
      if (f.branch) f.branch += b * size, f.gate += b * width, f.sum += b * size;
      run(f);
    }
  });
}

// The five gradients; those that are sums over rows are floats.
template <class T>
void backward_all(
    const Tensor& grad_sum, const Tensor& grad_y, const Tensor& sum, const Tensor& scale,
    const std::optional<Tensor>& branch, const std::optional<Tensor>& gate, const Tensor (&grads)[5]
) {
  const int64_t batch = sum.size(0), rows = sum.size(1), width = sum.size(2), size = rows * width;
  const Backward<T> first{at<T>(grad_sum), at<T>(grad_y), at<T>(sum), at<T>(scale), at<T>(branch), at<T>(gate),
                          at<T>(grads[0]), at<T>(grads[3]), at<float>(grads[1]), at<float>(grads[2]),
                          at<float>(grads[4]), rows, width, nullptr};
  torch::stable::parallel_for(0, size ? batch : 0, grain(size), [&](int64_t begin, int64_t end) {
    std::vector<float> room(width);
    for (int64_t b = begin; b < end; ++b) {
      Backward<T> g = first;
      g.grad_sum += b * size, g.grad_y += b * size, g.sum += b * size, g.scale += b * width, g.grad_x += b * size;
      g.grad_scale += b * width, g.grad_shift += b * width, g.room = room.data();
      if (g.branch) g.branch += b * size, g.gate += b * width, g.grad_branch += b * size, g.grad_gate += b * width;
      run(g);
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor> adaln(
    const Tensor& x_any,                      // [B, N, D] float32, bfloat16, float16
    const Tensor& scale_any,                  // [B, D], all of one dtype
    const Tensor& shift_any,                  // [B, D]
    const std::optional<Tensor>& branch_any,  // [B, N, D]
    const std::optional<Tensor>& gate_any     // [B, D]
) {                                           // sum (empty without a branch), y: [B, N, D]
  STD_TORCH_CHECK(x_any.dim() == 3, "x should be [B, N, D]");
  STD_TORCH_CHECK(branch_any.has_value() == gate_any.has_value(), "branch and gate are given together");
  const int64_t batch = x_any.size(0), rows = x_any.size(1), width = x_any.size(2);
  const ScalarType dtype = x_any.scalar_type();
  check(scale_any, dtype, {batch, width}, "scale should be [B, D], of the dtype of x");
  check(shift_any, dtype, {batch, width}, "shift should be [B, D], of the dtype of x");
  if (branch_any) {
    check(*branch_any, dtype, {batch, rows, width}, "branch should be [B, N, D], of the dtype of x");
    check(*gate_any, dtype, {batch, width}, "gate should be [B, D], of the dtype of x");
  }
  const Tensor x = torch::stable::contiguous(x_any), scale = torch::stable::contiguous(scale_any);
  const Tensor shift = torch::stable::contiguous(shift_any);
  const std::optional<Tensor> branch = dense(branch_any), gate = dense(gate_any);
  Tensor sum = branch ? torch::stable::new_empty(x, {batch, rows, width}) : torch::stable::new_empty(x, {0});
  Tensor y = torch::stable::new_empty(x, {batch, rows, width});
  const auto all = [&](auto face) { face(x, scale, shift, branch, gate, sum, y); };
  switch (stored(x)) {
    case Stored::kFloat32: all(forward_all<float>); break;
    case Stored::kBFloat16: all(forward_all<BFloat16>); break;
    case Stored::kFloat16: all(forward_all<Float16>); break;
    default: STD_TORCH_CHECK(false, "x should be float32, bfloat16 or float16");
  }
  return {sum, y};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> adaln_backward(
    const Tensor& grad_sum_any,               // [B, N, D] float32, bfloat16, float16
    const Tensor& grad_y_any,                 // [B, N, D], all of one dtype
    const Tensor& sum_any,                    // [B, N, D]
    const Tensor& scale_any,                  // [B, D]
    const std::optional<Tensor>& branch_any,  // [B, N, D]
    const std::optional<Tensor>& gate_any     // [B, D]
) {                                           // gradients of x, scale, shift, branch, gate; the last two may be empty
  const int64_t batch = sum_any.size(0), rows = sum_any.size(1), width = sum_any.size(2);
  const ScalarType dtype = sum_any.scalar_type();
  for (const Tensor* tensor : {&grad_sum_any, &grad_y_any, branch_any ? &*branch_any : &sum_any})
    check(*tensor, dtype, {batch, rows, width}, "gradients, sum and branch should be [B, N, D] of one dtype");
  for (const Tensor* tensor : {&scale_any, gate_any ? &*gate_any : &scale_any})
    check(*tensor, dtype, {batch, width}, "scale and gate should be [B, D], of the dtype of sum");
  STD_TORCH_CHECK(branch_any.has_value() == gate_any.has_value(), "branch and gate are given together");
  const Tensor grad_sum = torch::stable::contiguous(grad_sum_any), grad_y = torch::stable::contiguous(grad_y_any);
  const Tensor sum = torch::stable::contiguous(sum_any), scale = torch::stable::contiguous(scale_any);
  const std::optional<Tensor> branch = dense(branch_any), gate = dense(gate_any);
  const auto zeros = [&](int64_t b) { return torch::stable::new_zeros(sum, {b, width}, ScalarType::Float); };
  const Tensor grads[5] = {torch::stable::new_empty(sum, {batch, rows, width}), zeros(batch), zeros(batch),
                           torch::stable::new_empty(sum, {branch ? batch : 0, rows, width}), zeros(branch ? batch : 0)};
  const auto all = [&](auto face) { face(grad_sum, grad_y, sum, scale, branch, gate, grads); };
  switch (stored(sum)) {
    case Stored::kFloat32: all(backward_all<float>); break;
    case Stored::kBFloat16: all(backward_all<BFloat16>); break;
    case Stored::kFloat16: all(backward_all<Float16>); break;
    default: STD_TORCH_CHECK(false, "sum should be float32, bfloat16 or float16");
  }
  const auto rounded = [&](const Tensor& grad) { return torch::stable::to(grad, dtype); };
  return {grads[0], rounded(grads[1]), rounded(grads[2]), grads[3], rounded(grads[4])};
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def("adaln(Tensor x, Tensor scale, Tensor shift, Tensor? branch, Tensor? gate) -> (Tensor, Tensor)");
  m.def(
      "adaln_backward(Tensor grad_sum, Tensor grad_y, Tensor sum, Tensor scale, Tensor? branch, Tensor? gate) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) {
  m.impl("adaln", TORCH_BOX(&worldenv::cpu::adaln));
  m.impl("adaln_backward", TORCH_BOX(&worldenv::cpu::adaln_backward));
}
