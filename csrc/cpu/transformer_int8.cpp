// CPU face of worldenv::transformer_int8; worldenv/ops/transformer_int8.py says what it means.
// One episode at a time, so that all that lies between its input and its output stays in the cache of a core.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "attention.h"
#include "layer_norm.h"
#include "packed.h"

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
  std::vector<float> qkv, branch, sum;
  std::vector<uint8_t> bytes, hidden;
  AttentionRoom attention;
};

template <int Width, bool kFast>
WORLDENV_INLINE void run(const Layers& layers, const float* x, const float* condition, float* y, Room& room) {
  const int64_t n = layers.shape.tokens, d = layers.shape.width;
  const float *scale1 = condition, *shift1 = scale1 + d, *gate1 = shift1 + d, *scale2 = gate1 + d;
  const float *shift2 = scale2 + d, *gate2 = shift2 + d;
  uint8_t *bytes = room.bytes.data(), *hidden = room.hidden.data();
  float *qkv = room.qkv.data(), *branch = room.branch.data(), *sum = room.sum.data();
  const auto lines = [&](const uint8_t* from, const Packed& layer) { return Lines{from, layer.run, 0, 0, 1, n}; };
  forward<Width>(
      {x, scale1, shift1, nullptr, nullptr, nullptr, bytes, n, d, layers.to_qkv.step, layers.to_qkv.zero});
  multiply<Width, kFast>(layers.qkv, lines(bytes, layers.qkv), qkv);
  attend<Width>(qkv, branch, layers.shape, room.attention);
  to_levels<Width>(branch, 1, n * d, layers.to_merge.step, layers.to_merge.zero, bytes, 0);
  multiply<Width, kFast>(layers.merge, lines(bytes, layers.merge), branch);
  forward<Width>({x, scale2, shift2, branch, gate1, sum, bytes, n, d, layers.to_first.step, layers.to_first.zero});
  const float inverse = 1.0f / layers.to_second.step, zero = layers.to_second.zero;
  multiply<Width, kFast>(
      layers.first, lines(bytes, layers.first),
      [&](Vector<Width>& value, int64_t place, int64_t lane, int64_t lanes) WORLDENV_INLINE_LAMBDA {
        value.gelu_for_levels();
        value.store_levels(hidden + place + lane, lanes, inverse, zero);
      });
  multiply<Width, kFast>(
      layers.second, lines(hidden, layers.second),
      [&](Vector<Width>& value, int64_t place, int64_t lane, int64_t lanes) WORLDENV_INLINE_LAMBDA {
        Vector<Width> gate, before;
        gate.load(gate2 + lane, lanes);
        before.load(sum + place + lane, lanes);
        value.v = before.v + gate.v * value.v;
        value.store(y + place + lane, lanes);
      });
}

WORLDENV_DOT_FACES(run,
                   (const Layers& layers, const float* x, const float* condition, float* y, Room& room),
                   (layers, x, condition, y, room))

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
  check_grid(step1, zero1), check_grid(step2, zero2), check_grid(step3, zero3), check_grid(step4, zero4);
  const Tensor x = torch::stable::contiguous(x_any), condition = torch::stable::contiguous(condition_any);
  const Layers layers{{n, d, heads}, hidden, packed(qkv, affine1, d, 3 * d, 1), packed(merge, affine2, d, d, 1),
                      packed(first, affine3, d, hidden, 1), packed(second, affine4, hidden, d, 1),
                      {float(step1), float(zero1)}, {float(step2), float(zero2)}, {float(step3), float(zero3)},
                      {float(step4), float(zero4)}};
  Tensor y = torch::stable::new_empty(x, {batch, n, d});
  const float *from = x.const_data_ptr<float>(), *with = condition.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  const Function run_one = function();
  torch::stable::parallel_for(0, n ? batch : 0, 1, [&](int64_t begin, int64_t end) {
    Room room{std::vector<float>(n * 3 * d), std::vector<float>(n * d), std::vector<float>(n * d),
              std::vector<uint8_t>(n * d), std::vector<uint8_t>(n * hidden), AttentionRoom(layers.shape)};
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
