// CPU face of worldenv::transformer_int8; worldenv/ops/transformer_int8.py says what it means.
// One episode at a time, so that all that lies between its input and its output stays in the cache of a core.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention.h"
#include "dot.h"
#include "layer_norm.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Grid {
  float step, zero;
};

struct Layers {
  Attention shape;
  int64_t hidden;
  Packed qkv, merge, first, second;
  Grid to_qkv, to_merge, to_first, to_second;
};

struct Room {
  std::vector<float> wide, branch, sum;
  std::vector<uint8_t> bytes;
  AttentionRoom attention;
};

template <int Width, bool kGelu>
WORLDENV_INLINE void to_levels(const float* x, int64_t count, const Grid& grid, uint8_t* to) {
  Vector<Width> value;
  const float inverse = 1.0f / grid.step, zero = grid.zero;
  for (int64_t i = 0; i < count; i += Width) {
    value.load(x + i, count - i);
    if (kGelu) value.gelu_for_levels();
    value.store_levels(to + i, count - i, inverse, zero);
  }
}

template <int Width, bool kFast>
WORLDENV_INLINE void run(const Layers& layers, const float* x, const float* condition, float* y, Room& room) {
  const int64_t n = layers.shape.tokens, d = layers.shape.width;
  const float *scale1 = condition, *shift1 = scale1 + d, *gate1 = shift1 + d, *scale2 = gate1 + d;
  const float *shift2 = scale2 + d, *gate2 = shift2 + d;
  uint8_t* bytes = room.bytes.data();
  float *wide = room.wide.data(), *branch = room.branch.data(), *sum = room.sum.data();
  forward<Width>(
      {x, scale1, shift1, nullptr, nullptr, nullptr, bytes, n, d, layers.to_qkv.step, layers.to_qkv.zero});
  multiply<Width, kFast>(layers.qkv, {bytes, d, 0, wide, nullptr, 1, n});
  attend<Width>(wide, branch, layers.shape, room.attention);
  to_levels<Width, false>(branch, n * d, layers.to_merge, bytes);
  multiply<Width, kFast>(layers.merge, {bytes, d, 0, branch, nullptr, 1, n});
  forward<Width>({x, scale2, shift2, branch, gate1, sum, bytes, n, d, layers.to_first.step, layers.to_first.zero});
  multiply<Width, kFast>(layers.first, {bytes, d, 0, wide, nullptr, 1, n});
  to_levels<Width, true>(wide, n * layers.hidden, layers.to_second, bytes);
  multiply<Width, kFast>(layers.second, {bytes, layers.hidden, 0, branch, nullptr, 1, n});
  Vector<Width> value, more, gate;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < d; c += Width) {
      value.load(sum + i * d + c, d - c);
      more.load(branch + i * d + c, d - c);
      gate.load(gate2 + c, d - c);
      value.v += gate.v * more.v;
      value.store(y + i * d + c, d - c);
    }
}

using Function = void (*)(const Layers&, const float*, const float*, float*, Room&);

#define WORLDENV_FACE(name, attribute, width, fast)                                                               \
  attribute void name(const Layers& layers, const float* x, const float* condition, float* y, Room& room) {       \
    run<width, fast>(layers, x, condition, y, room);                                                              \
  }
WORLDENV_FACE(run_plain, , 4, false)
#if WORLDENV_X86
WORLDENV_FACE(run_avx2, WORLDENV_AVX2, 8, false)
WORLDENV_FACE(run_avx2_dot, WORLDENV_AVX2, 8, true)
WORLDENV_FACE(run_avx512, WORLDENV_AVX512, 16, false)
WORLDENV_FACE(run_avx512_dot, WORLDENV_AVX512, 16, true)
#endif
#undef WORLDENV_FACE

Function function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return has_dot() ? run_avx512_dot : run_avx512;
  if (isa() == Isa::kAvx2) return has_dot() ? run_avx2_dot : run_avx2;
#endif
  return run_plain;
}

Packed packed(const Tensor& weights, const Tensor& affine, int64_t inputs, int64_t outputs) {
  const int64_t blocks = (outputs + kLanes - 1) / kLanes;
  STD_TORCH_CHECK(weights.dim() == 5 && weights.scalar_type() == ScalarType::Char && weights.is_contiguous() &&
                      weights.size(0) == blocks && weights.size(1) == 1 && weights.size(2) * kFour == inputs &&
                      weights.size(3) == kLanes && weights.size(4) == kFour,
                  "weights should be contiguous int8 [ceil(O / 16), 1, I / 4, 16, 4]");
  STD_TORCH_CHECK(affine.dim() == 2 && affine.scalar_type() == ScalarType::Float && affine.is_contiguous() &&
                      affine.size(0) == 2 && affine.size(1) == blocks * kLanes,
                  "affine should be contiguous float32 [2, ceil(O / 16) * 16]");
  return {weights.const_data_ptr<int8_t>(), affine.const_data_ptr<float>(), outputs, 1, inputs};
}

}  // namespace

Tensor transformer_int8(
    const Tensor& x_any,          // [B, N, D] float32
    const Tensor& condition_any,  // [B, 6 D] float32
    int64_t heads,
    int64_t hidden,
    const Tensor& qkv, const Tensor& affine1, double step1, int64_t zero1,
    const Tensor& merge, const Tensor& affine2, double step2, int64_t zero2,
    const Tensor& first, const Tensor& affine3, double step3, int64_t zero3,
    const Tensor& second, const Tensor& affine4, double step4, int64_t zero4
) {                               // [B, N, D] float32
  STD_TORCH_CHECK(x_any.dim() == 3 && x_any.scalar_type() == ScalarType::Float, "x should be float32 [B, N, D]");
  const int64_t batch = x_any.size(0), n = x_any.size(1), d = x_any.size(2);
  STD_TORCH_CHECK(condition_any.dim() == 2 && condition_any.scalar_type() == ScalarType::Float &&
                      condition_any.size(0) == batch && condition_any.size(1) == 6 * d,
                  "condition should be float32 [B, 6 D]");
  STD_TORCH_CHECK(heads > 0 && d % heads == 0 && d % kFour == 0 && hidden % kFour == 0 && hidden > 0,
                  "heads should divide D, and D and hidden be multiples of 4");
  STD_TORCH_CHECK(step1 > 0.0 && step2 > 0.0 && step3 > 0.0 && step4 > 0.0, "steps should be positive");
  const Tensor x = torch::stable::contiguous(x_any), condition = torch::stable::contiguous(condition_any);
  const Layers layers{{n, d, heads}, hidden, packed(qkv, affine1, d, 3 * d), packed(merge, affine2, d, d),
                      packed(first, affine3, d, hidden), packed(second, affine4, hidden, d),
                      {float(step1), float(zero1)}, {float(step2), float(zero2)}, {float(step3), float(zero3)},
                      {float(step4), float(zero4)}};
  Tensor y = torch::stable::new_empty(x, {batch, n, d});
  const float *from = x.const_data_ptr<float>(), *with = condition.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  const Function run_one = function();
  const int64_t widest = std::max(3 * d, hidden);
  torch::stable::parallel_for(0, n ? batch : 0, 1, [&](int64_t begin, int64_t end) {
    Room room{std::vector<float>(n * widest), std::vector<float>(n * d), std::vector<float>(n * d),
              std::vector<uint8_t>(n * std::max(d, hidden)), AttentionRoom(layers.shape)};
    for (int64_t b = begin; b < end; ++b)
      run_one(layers, from + b * n * d, with + b * 6 * d, to + b * n * d, room);
  });
  return y;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "transformer_int8(Tensor x, Tensor condition, int heads, int hidden, Tensor qkv, Tensor affine1, float step1, "
      "int zero1, Tensor merge, Tensor affine2, float step2, int zero2, Tensor first, Tensor affine3, float step3, int "
      "zero3, Tensor second, Tensor affine4, float step4, int zero4) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) {
  m.impl("transformer_int8", TORCH_BOX(&worldenv::cpu::transformer_int8));
}
