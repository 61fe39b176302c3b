// CPU face of worldenv::rowwise_linear; worldenv/ops/rowwise_linear.py says what it means.
// A lane is a place in the row. As many sums as a register has lanes are taken at once, of 4 rows with 4 outputs or of
// one row with 16: each in a register of its own, whose lanes are then added up by halves. So the order in which an
// output is summed is always the same.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "product.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kRows = 64;        // of a block, which stays in the cache while all weights pass by
constexpr int64_t kGrain = 1 << 18;  // products; a thread is not worth waking for less

struct Layer {
  const float *x, *weight, *bias;  // [N, I], [O, I], [O] or null
  float* y;                        // [N, O]
  int64_t rows, inputs, outputs;
};

// Lane l of the result is the sum of the lanes of sums[l].
template <int Width>
WORLDENV_INLINE void fold(Vector<Width> (&sums)[Width]) {
#pragma GCC unroll 4
  for (int far = Width / 2; far; far /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < far; ++i) {
      exchange<Width>(sums[i], sums[i + far], far);
      sums[i].v += sums[i + far].v;
    }
}

template <int Width, int Rows, int Outputs>
WORLDENV_INLINE void add(
    const float* const (&x)[Rows], const float* const (&weight)[Outputs], int64_t i, int64_t lanes,
    Vector<Width> (&sums)[Width]
) {
  Vector<Width> right[Outputs];
#pragma GCC unroll 16
  for (int o = 0; o < Outputs; ++o) right[o].load(weight[o] + i, lanes);
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
    Vector<Width> left;
    left.load(x[r] + i, lanes);
#pragma GCC unroll 16
    for (int o = 0; o < Outputs; ++o) sums[r * Outputs + o].v += left.v * right[o].v;
  }
}

// Some outputs of rows first .. last - 1; beyond the last row or output, that one is taken again and not written.
template <int Width, int Rows>
WORLDENV_INLINE void outputs(const Layer& layer, int64_t first, int64_t last, int64_t output) {
  constexpr int kOutputs = Width / Rows;
  const int64_t inputs = layer.inputs, count = std::min<int64_t>(kOutputs, layer.outputs - output);
  const float *x[Rows], *weight[kOutputs];
  Vector<Width> bias;
  for (int o = 0; o < kOutputs; ++o) {
    const int64_t place = output + std::min<int64_t>(o, count - 1);
    weight[o] = layer.weight + place * inputs;
    for (int r = 0; r < Rows; ++r) bias.v[r * kOutputs + o] = layer.bias ? layer.bias[place] : 0.0f;
  }
  for (int64_t row = first; row < last; row += Rows) {
    const int64_t here = std::min<int64_t>(Rows, last - row);
    for (int r = 0; r < Rows; ++r) x[r] = layer.x + (row + std::min<int64_t>(r, here - 1)) * inputs;
    Vector<Width> sums[Width];
    int64_t i = 0;
    for (; i + Width <= inputs; i += Width) add<Width, Rows, kOutputs>(x, weight, i, Width, sums);
    if (i < inputs) add<Width, Rows, kOutputs>(x, weight, i, inputs - i, sums);
    fold<Width>(sums);
    sums[0].v += bias.v;
    float results[Width];
    sums[0].store(results);
    for (int64_t r = 0; r < here; ++r) {
      float* to = layer.y + (row + r) * layer.outputs + output;
      if (count == kOutputs) __builtin_memcpy(to, results + r * kOutputs, sizeof(float) * kOutputs);
      else for (int64_t o = 0; o < count; ++o) to[o] = results[r * kOutputs + o];
    }
  }
}

using Function = void (*)(const Layer&, int64_t first, int64_t last, int64_t output);

void many_plain(const Layer& l, int64_t first, int64_t last, int64_t output) { outputs<4, 2>(l, first, last, output); }
void few_plain(const Layer& l, int64_t first, int64_t last, int64_t output) { outputs<4, 1>(l, first, last, output); }
#if WORLDENV_X86
WORLDENV_AVX2 void many_avx2(const Layer& l, int64_t first, int64_t last, int64_t output) {
  outputs<8, 2>(l, first, last, output);
}
WORLDENV_AVX2 void few_avx2(const Layer& l, int64_t first, int64_t last, int64_t output) {
  outputs<8, 1>(l, first, last, output);
}
WORLDENV_AVX512 void many_avx512(const Layer& l, int64_t first, int64_t last, int64_t output) {
  outputs<16, 4>(l, first, last, output);
}
WORLDENV_AVX512 void few_avx512(const Layer& l, int64_t first, int64_t last, int64_t output) {
  outputs<16, 1>(l, first, last, output);
}
#endif

struct Face {
  Function function;
  int64_t outputs;  // that it makes at a time
};

// For as many rows.
Face face(int64_t rows) {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return rows > 1 ? Face{many_avx512, 4} : Face{few_avx512, 16};
  if (isa() == Isa::kAvx2) return rows > 1 ? Face{many_avx2, 4} : Face{few_avx2, 8};
#endif
  return rows > 1 ? Face{many_plain, 2} : Face{few_plain, 4};
}

void compute(const Layer& layer) {
  const Face some = face(layer.rows);
  const int64_t steps = (layer.outputs + some.outputs - 1) / some.outputs, blocks = (layer.rows + kRows - 1) / kRows;
  const int64_t products = std::min(layer.rows, kRows) * some.outputs * layer.inputs;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, products));
  torch::stable::parallel_for(0, blocks * steps, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / steps * kRows;
      some.function(layer, first, std::min(first + kRows, layer.rows), i % steps * some.outputs);
    }
  });
}

}  // namespace

Tensor rowwise_linear(const Tensor& x_any, const Tensor& weight_any, const std::optional<Tensor>& bias_any) {
  const bool floats = x_any.scalar_type() == ScalarType::Float && weight_any.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(floats && x_any.dim() > 0 && weight_any.dim() == 2 && x_any.size(-1) == weight_any.size(1),
                  "x should be float32 [..., I] and weight float32 [O, I]");
  const int64_t inputs = weight_any.size(1), outputs = weight_any.size(0);
  const Tensor x = torch::stable::contiguous(x_any), weight = torch::stable::contiguous(weight_any);
  std::optional<Tensor> bias;
  if (bias_any) {
    STD_TORCH_CHECK(bias_any->scalar_type() == ScalarType::Float && bias_any->dim() == 1 &&
                    bias_any->size(0) == outputs, "bias should be float32 [O]");
    bias = torch::stable::contiguous(*bias_any);
  }
  int64_t rows = 1;
  std::vector<int64_t> shape(x.dim(), outputs);
  for (int64_t d = 0; d < x.dim() - 1; ++d) rows *= shape[d] = x.size(d);
  Tensor y = torch::stable::new_empty(x, shape);
  compute({x.const_data_ptr<float>(), weight.const_data_ptr<float>(), bias ? bias->const_data_ptr<float>() : nullptr,
           y.mutable_data_ptr<float>(), rows, inputs, outputs});
  return y;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) { m.def("rowwise_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("rowwise_linear", TORCH_BOX(&worldenv::cpu::rowwise_linear)); }
