// CPU face of worldenv::quantise; worldenv/ops/quantise.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

#include "vector.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 16;  // numbers; a thread is not worth waking for less

template <int Width>
WORLDENV_INLINE void levels(const float* x, int64_t count, float inverse, float zero, uint8_t* y) {
  Vector<Width> value;
  for (int64_t i = 0; i < count; i += Width) {
    value.load(x + i, count - i);
    value.store_levels(y + i, count - i, inverse, zero);
  }
}

using Function = void (*)(const float*, int64_t, float, float, uint8_t*);

void levels_plain(const float* x, int64_t count, float inverse, float zero, uint8_t* y) {
  levels<4>(x, count, inverse, zero, y);
}
#if WORLDENV_X86
WORLDENV_AVX2 void levels_avx2(const float* x, int64_t count, float inverse, float zero, uint8_t* y) {
  levels<8>(x, count, inverse, zero, y);
}
WORLDENV_AVX512 void levels_avx512(const float* x, int64_t count, float inverse, float zero, uint8_t* y) {
  levels<16>(x, count, inverse, zero, y);
}
#endif

Function function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return levels_avx512;
  if (isa() == Isa::kAvx2) return levels_avx2;
#endif
  return levels_plain;
}

}  // namespace

Tensor quantise(const Tensor& x_any, double step, int64_t zero) {  // [...] float32 -> [...] uint8
  STD_TORCH_CHECK(x_any.scalar_type() == ScalarType::Float, "x should be float32");
  STD_TORCH_CHECK(step > 0.0 && zero >= 0 && zero <= 255, "step should be positive and zero in [0, 255]");
  const Tensor x = torch::stable::contiguous(x_any);
  Tensor y = torch::stable::new_empty(x, x.sizes(), ScalarType::Byte);
  const float* from = x.const_data_ptr<float>();
  uint8_t* to = y.mutable_data_ptr<uint8_t>();
  const Function some_levels = function();
  torch::stable::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    some_levels(from + begin, end - begin, float(1.0 / step), float(zero), to + begin);
  });
  return y;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) { m.def("quantise(Tensor x, float step, int zero) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("quantise", TORCH_BOX(&worldenv::cpu::quantise)); }
