// CPU face of worldenv::spatial_softmax; worldenv/ops/spatial_softmax.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "spatial_softmax.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using Function = void (*)(const float*, int64_t, int64_t, int64_t, float*);

void look_plain(const float* rows, int64_t height, int64_t width, int64_t channels, float* out) {
  look<4>(rows, height, width, channels, out);
}
#if WORLDENV_X86
WORLDENV_AVX2 void look_avx2(const float* rows, int64_t height, int64_t width, int64_t channels, float* out) {
  look<8>(rows, height, width, channels, out);
}
WORLDENV_AVX512 void look_avx512(const float* rows, int64_t height, int64_t width, int64_t channels, float* out) {
  look<16>(rows, height, width, channels, out);
}
#endif

Function function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return look_avx512;
  if (isa() == Isa::kAvx2) return look_avx2;
#endif
  return look_plain;
}

}  // namespace

Tensor spatial_softmax(const Tensor& rows_any) {  // [B, H, W, C] float32 -> [B, 3 C]
  STD_TORCH_CHECK(rows_any.dim() == 4 && rows_any.scalar_type() == ScalarType::Float && rows_any.size(1) > 1 &&
                      rows_any.size(2) > 1,
                  "rows should be float32 [B, H, W, C] with H, W >= 2");
  const Tensor rows = torch::stable::contiguous(rows_any);
  const int64_t batch = rows.size(0), height = rows.size(1), width = rows.size(2), channels = rows.size(3);
  Tensor out = torch::stable::new_empty(rows, {batch, 3 * channels});
  const float* from = rows.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const Function look_at_one = function();
  torch::stable::parallel_for(0, batch, 4, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      look_at_one(from + b * height * width * channels, height, width, channels, to + b * 3 * channels);
  });
  return out;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) { m.def("spatial_softmax(Tensor rows) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("spatial_softmax", TORCH_BOX(&worldenv::cpu::spatial_softmax)); }
