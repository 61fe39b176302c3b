// CPU face of worldenv::compose; worldenv/ops/compose.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

#include "compose.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrainBytes = 1 << 18;  // a thread is not worth waking for less

template <typename Number>
using RowFunction =
    void (*)(const float*, const float*, const Number*, const float*, float*, int64_t, const Sizes&, const Cut&);

template <typename Number>
void row_plain(const float* raw, const float* bias, const Number* pictures, const float* plate, float* out,
               int64_t width, const Sizes& sizes, const Cut& cut) {
  compose_row<4>(raw, bias, pictures, plate, out, width, sizes, cut);
}
#if WORLDENV_X86
template <typename Number>
WORLDENV_AVX2 void row_avx2(const float* raw, const float* bias, const Number* pictures, const float* plate, float* out,
                            int64_t width, const Sizes& sizes, const Cut& cut) {
  compose_row<8>(raw, bias, pictures, plate, out, width, sizes, cut);
}
template <typename Number>
WORLDENV_AVX512 void row_avx512(const float* raw, const float* bias, const Number* pictures, const float* plate,
                                float* out, int64_t width, const Sizes& sizes, const Cut& cut) {
  compose_row<16>(raw, bias, pictures, plate, out, width, sizes, cut);
}
#endif

template <typename Number>
RowFunction<Number> row_function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return row_avx512<Number>;
  if (isa() == Isa::kAvx2) return row_avx2<Number>;
#endif
  return row_plain<Number>;
}

template <typename Number>
void compose_all(const Tensor& raw, const Tensor& bias, const Tensor& pictures, const Tensor& plate, const Sizes& sizes,
                 const Cut& cut, Tensor& frames) {
  const int64_t height = raw.size(1), width = raw.size(2), channels = raw.size(3), known = sizes.sources - 1;
  const float *raw_data = raw.const_data_ptr<float>(), *bias_data = bias.const_data_ptr<float>();
  const Number* picture_data = pictures.const_data_ptr<Number>();
  const float* plate_data = plate.const_data_ptr<float>();
  float* out = frames.mutable_data_ptr<float>();
  const RowFunction<Number> compose_one_row = row_function<Number>();
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, width * channels * 4));
  torch::stable::parallel_for(0, raw.size(0) * height, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      compose_one_row(raw_data + i * width * channels, bias_data, picture_data + i * width * known * kPatch,
                      plate_data + i % height * width * kPatch, out + i * width * sizes.frames * kPatch, width, sizes,
                      cut);
  });
}

}  // namespace

Tensor compose(
    const Tensor& raw_any,       // [B, h, w, (3 + S) * K * 4] float32
    const Tensor& bias_any,      // [(3 + S) * K * 4]
    const Tensor& pictures_any,  // [B, h, w, S - 1, 12] uint8 or float32
    const Tensor& plate_any,     // [h, w, 12]
    double smallest_share,
    double smallest_correction
) {                              // [B, h, w, K, 12]
  for (const Tensor* tensor : {&raw_any, &bias_any, &plate_any})
    STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Float, "compose takes float32");
  const bool bytes = pictures_any.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(bytes || pictures_any.scalar_type() == ScalarType::Float, "pictures should be uint8 or float32");
  STD_TORCH_CHECK(raw_any.dim() == 4 && bias_any.dim() == 1 && pictures_any.dim() == 5 && plate_any.dim() == 3,
                  "raw should be [B, h, w, C], bias [C], pictures [B, h, w, S - 1, 12], plate [h, w, 12]");
  const Tensor raw = torch::stable::contiguous(raw_any), bias = torch::stable::contiguous(bias_any);
  const Tensor pictures = torch::stable::contiguous(pictures_any), plate = torch::stable::contiguous(plate_any);
  const int64_t batch = raw.size(0), height = raw.size(1), width = raw.size(2), channels = raw.size(3);
  const int64_t sources = pictures.size(3) + 1, each = (3 + sources) * kSub;
  const Sizes sizes{channels / each, sources};
  const Cut cut{float(smallest_share), float(smallest_correction)};
  STD_TORCH_CHECK(sources <= kMaxSources, "compose takes at most 64 pictures");
  STD_TORCH_CHECK(channels == sizes.frames * each, "raw has channels for no whole number of frames");
  STD_TORCH_CHECK(bias.size(0) == channels, "bias should have a number for each channel of raw");
  STD_TORCH_CHECK(pictures.size(0) == batch && pictures.size(1) == height && pictures.size(2) == width &&
                      pictures.size(4) == kPatch,
                  "pictures should be [B, h, w, S - 1, 12]");
  STD_TORCH_CHECK(plate.size(0) == height && plate.size(1) == width && plate.size(2) == kPatch,
                  "plate should be [h, w, 12]");

  Tensor frames = torch::stable::new_empty(raw, {batch, height, width, sizes.frames, kPatch});
  if (bytes) compose_all<uint8_t>(raw, bias, pictures, plate, sizes, cut, frames);
  else compose_all<float>(raw, bias, pictures, plate, sizes, cut, frames);
  return frames;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "compose(Tensor raw, Tensor bias, Tensor pictures, Tensor plate, float smallest_share, float smallest_correction)"
      " -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("compose", TORCH_BOX(&worldenv::cpu::compose)); }
