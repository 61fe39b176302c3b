// CPU face of worldenv::compose; worldenv/ops/compose.py says what it means.
// One cell at a time: its numbers lie next to each other, frames and pixels of one choice side by side, so that every
// loop over `lane` is a vector operation. A picture without any share in a cell is not read.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "vector.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kSub = 4;        // the 2 x 2 pixels of a cell
constexpr int64_t kMaxSources = 64;
constexpr int64_t kGrainBytes = 1 << 18;  // a thread is not worth waking for less

struct Sizes {
  int64_t height, width, frames, memory, carried;  // of the cells; of the frames to compose, of the pictures
  int64_t sources() const { return memory + carried + 1; }
  int64_t plane() const { return 4 * height * width; }
};

struct Cut {
  float share, correction;
};

// In every frame the pixels from[0], from[1] and, one row on, from[row], from[row + 1].
template <int Width>
WORLDENV_INLINE void load_cell(Vector<Width>& to, const float* from, int64_t row) {
  double upper, lower;
  __builtin_memcpy(&upper, from, sizeof(upper));
  __builtin_memcpy(&lower, from + row, sizeof(lower));
  typename Native<Width>::Pairs pairs;
  for (int64_t l = 0; l < Width / 2; ++l) pairs[l] = l % 2 ? lower : upper;
  to.v = (typename Vector<Width>::Floats)pairs;
}

// Nearer to zero by `by`, and zero within; NaN stays NaN.
template <int Width>
WORLDENV_INLINE void shrink(Vector<Width>& x, float by) {
  const auto above = x.v - by, below = x.v + by;
  x.v = above > 0.0f ? above : below < 0.0f ? below : x.v * 0.0f;
}

// The shares of the S pictures in one cell: softmax, cut, scaled to sum 1.
template <int Width>
WORLDENV_INLINE void share_out(
    const float* choice, const float* bias, int64_t sources, int64_t stride, int64_t lanes, float cut,
    Vector<Width>* share
) {
  Vector<Width> highest, total, kept, more;
  highest.fill(-std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < sources; ++j) {
    share[j].load(choice + j * stride, lanes);
    more.load(bias + j * stride, lanes);
    share[j].v += more.v;
    highest.v = highest.v > share[j].v ? highest.v : share[j].v;
  }
  for (int64_t j = 0; j < sources; ++j) {
    share[j].v -= highest.v;
    share[j].exponential();
    total.v += share[j].v;
  }
  total.v = 1.0f / total.v;
  for (int64_t j = 0; j < sources; ++j) {
    share[j].v = share[j].v * total.v - cut;
    share[j].v = share[j].v < 0.0f ? share[j].v * 0.0f : share[j].v;
    kept.v += share[j].v;
  }
  kept.v = 1.0f / kept.v;
  for (int64_t j = 0; j < sources; ++j) share[j].v *= kept.v;
}

// The cells of one row of one episode.
template <int Width>
WORLDENV_INLINE void compose_row(
    const float* raw,             // [w, 3 + S, K, 4]
    const float* bias,            // [3 + S, K, 4]
    const float* const* picture,  // S x [3, 2 h, 2 w], at the first pixel of the row
    float* frame,                 // [K, 3, 2 h, 2 w], at the first pixel of the row
    const Sizes& sizes,
    const Cut& cut
) {
  const int64_t sources = sizes.sources(), stride = sizes.frames * kSub, row = 2 * sizes.width, plane = sizes.plane();
  Vector<Width> share[kMaxSources], out[3], pixels, more;
  for (int64_t x = 0; x < sizes.width; ++x) {
    for (int64_t first = 0; first < stride; first += Width) {
      const float* cell = raw + x * (3 + sources) * stride + first;
      const int64_t lanes = std::min<int64_t>(Width, stride - first);
      share_out<Width>(cell + 3 * stride, bias + 3 * stride + first, sources, stride, lanes, cut.share, share);
      for (int64_t c = 0; c < 3; ++c) {
        out[c].load(cell + c * stride, lanes);
        more.load(bias + c * stride + first, lanes);
        out[c].v += more.v;
        shrink(out[c], cut.correction);
      }
      for (int64_t j = 0; j < sources; ++j) {
        if (share[j].all_zero()) continue;
        for (int64_t c = 0; c < 3; ++c) {
          load_cell(pixels, picture[j] + c * plane + 2 * x, row);
          out[c].v += share[j].v * pixels.v;
        }
      }
      for (int64_t l = 0; l < lanes; l += kSub)
        for (int64_t c = 0; c < 3; ++c) {
          float* pixel = frame + ((first + l) / kSub * 3 + c) * plane + 2 * x;
          const float* value = reinterpret_cast<const float*>(&out[c].v) + l;
          __builtin_memcpy(pixel, value, 2 * sizeof(float));
          __builtin_memcpy(pixel + row, value + 2, 2 * sizeof(float));
        }
    }
  }
}

using RowFunction =
    void (*)(const float*, const float*, const float* const*, float*, const Sizes&, const Cut&);

void row_plain(const float* raw, const float* bias, const float* const* picture, float* frame, const Sizes& sizes,
               const Cut& cut) {
  compose_row<4>(raw, bias, picture, frame, sizes, cut);
}
#if WORLDENV_X86
WORLDENV_AVX2 void row_avx2(const float* raw, const float* bias, const float* const* picture, float* frame,
                            const Sizes& sizes, const Cut& cut) {
  compose_row<8>(raw, bias, picture, frame, sizes, cut);
}
WORLDENV_AVX512 void row_avx512(const float* raw, const float* bias, const float* const* picture, float* frame,
                                const Sizes& sizes, const Cut& cut) {
  compose_row<16>(raw, bias, picture, frame, sizes, cut);
}
#endif

RowFunction row_function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return row_avx512;
  if (isa() == Isa::kAvx2) return row_avx2;
#endif
  return row_plain;
}

}  // namespace

Tensor compose(
    const Tensor& raw_any,      // [B, h, w, (3 + S) * K * 4] float32
    const Tensor& bias_any,     // [(3 + S) * K * 4]
    const Tensor& memory_any,   // [B, M, 3, 2 h, 2 w]
    const Tensor& carried_any,  // [B, P, 3, 2 h, 2 w]
    const Tensor& plate_any,    // [3, 2 h, 2 w]
    double smallest_share,
    double smallest_correction
) {                             // [B, K, 3, 2 h, 2 w]
  for (const Tensor* tensor : {&raw_any, &bias_any, &memory_any, &carried_any, &plate_any})
    STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Float, "compose takes float32");
  STD_TORCH_CHECK(raw_any.dim() == 4 && bias_any.dim() == 1 && memory_any.dim() == 5 && carried_any.dim() == 5 &&
                      plate_any.dim() == 3,
                  "raw should be [B, h, w, C], bias [C], memory and carried [B, N, 3, 2 h, 2 w], plate [3, 2 h, 2 w]");
  const Tensor raw = torch::stable::contiguous(raw_any), bias = torch::stable::contiguous(bias_any);
  const Tensor memory = torch::stable::contiguous(memory_any), carried = torch::stable::contiguous(carried_any);
  const Tensor plate = torch::stable::contiguous(plate_any);
  const int64_t batch = raw.size(0), cells = 3 + memory.size(1) + carried.size(1) + 1;
  const Sizes sizes{raw.size(1), raw.size(2), raw.size(3) / (cells * kSub), memory.size(1), carried.size(1)};
  const Cut cut{float(smallest_share), float(smallest_correction)};
  STD_TORCH_CHECK(sizes.sources() <= kMaxSources, "compose takes at most 64 pictures");
  STD_TORCH_CHECK(raw.size(3) == sizes.frames * cells * kSub, "raw has channels for no whole number of frames");
  STD_TORCH_CHECK(bias.size(0) == raw.size(3), "bias should have a number for each channel of raw");
  for (const Tensor* pictures : {&memory, &carried})
    STD_TORCH_CHECK(pictures->size(0) == batch && pictures->size(2) == 3 && pictures->size(3) == 2 * sizes.height &&
                        pictures->size(4) == 2 * sizes.width,
                    "memory and carried should be [B, N, 3, 2 h, 2 w]");
  STD_TORCH_CHECK(plate.size(0) == 3 && plate.size(1) == 2 * sizes.height && plate.size(2) == 2 * sizes.width,
                  "plate should be [3, 2 h, 2 w]");

  const int64_t image = 3 * sizes.plane(), pictures = sizes.memory + sizes.carried;
  Tensor frames = torch::stable::new_empty(raw, {batch, sizes.frames, 3, 2 * sizes.height, 2 * sizes.width});
  const float *raw_data = raw.const_data_ptr<float>(), *bias_data = bias.const_data_ptr<float>();
  const float *memory_data = memory.const_data_ptr<float>(), *carried_data = carried.const_data_ptr<float>();
  const float* plate_data = plate.const_data_ptr<float>();
  float* out = frames.mutable_data_ptr<float>();
  const RowFunction compose_one_row = row_function();
  const int64_t row_bytes = sizes.width * raw.size(3) * int64_t(sizeof(float));
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, row_bytes));
  torch::stable::parallel_for(0, batch * sizes.height, grain, [&](int64_t begin, int64_t end) {
    std::vector<const float*> picture(pictures + 1);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / sizes.height, y = i % sizes.height, offset = 2 * y * 2 * sizes.width;
      for (int64_t j = 0; j < sizes.memory; ++j) picture[j] = memory_data + (b * sizes.memory + j) * image + offset;
      for (int64_t j = 0; j < sizes.carried; ++j)
        picture[sizes.memory + j] = carried_data + (b * sizes.carried + j) * image + offset;
      picture[pictures] = plate_data + offset;
      compose_one_row(raw_data + i * sizes.width * raw.size(3), bias_data, picture.data(),
                      out + b * sizes.frames * image + offset, sizes, cut);
    }
  });
  return frames;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "compose(Tensor raw, Tensor bias, Tensor memory, Tensor carried, Tensor plate, float smallest_share, "
      "float smallest_correction) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("compose", TORCH_BOX(&worldenv::cpu::compose)); }
