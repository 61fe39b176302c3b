// CPU face of worldenv::spatial_softmax; worldenv/ops/spatial_softmax.py says what it means.
// Channels last, a channel a lane: the greatest value first, then the sums.
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

// One image.
template <int Width>
WORLDENV_INLINE void look(const float* rows, int64_t height, int64_t width, int64_t channels, float* out) {
  for (int64_t c = 0; c < channels; c += Width) {
    const int64_t lanes = channels - c;
    Vector<Width> value, highest, e, total, x, y, peak;
    highest.load(rows + c, lanes);
    for (int64_t p = 1; p < height * width; ++p) {
      value.load(rows + p * channels + c, lanes);
      highest.v = highest.v > value.v ? highest.v : value.v;
    }
    for (int64_t i = 0; i < height; ++i) {
      Vector<Width> line;
      const float down = 2.0f * float(i) / float(height - 1) - 1.0f;
      for (int64_t j = 0; j < width; ++j) {
        value.load(rows + (i * width + j) * channels + c, lanes);
        e.v = value.v - highest.v;
        e.exponential();
        line.v += e.v;
        x.v += e.v * (2.0f * float(j) / float(width - 1) - 1.0f);
        peak.v += e.v * value.v;
      }
      total.v += line.v;
      y.v += line.v * down;
    }
    total.v = 1.0f / total.v;
    x.v *= total.v, y.v *= total.v, peak.v *= total.v;
    x.store(out + c, lanes), y.store(out + channels + c, lanes), peak.store(out + 2 * channels + c, lanes);
  }
}

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
