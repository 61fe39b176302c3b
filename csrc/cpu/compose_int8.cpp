// CPU face of worldenv::compose_int8; worldenv/ops/compose_int8.py says what it means.
// A few cells at a time: their bytes, their numbers and what becomes of them stay in the first cache.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "compose.h"
#include "packed.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kSpan = 16;  // cells

struct Head {
  Packed layer;
  float step, zero;
  Sizes sizes;
  Cut cut;
};

struct Room {
  std::vector<uint8_t> bytes;
  std::vector<float> raw;
};

// The cells of one row of one episode.
template <int Width, bool kFast>
WORLDENV_INLINE void row_of(
    const Head& head,
    const float* x,           // [w, C]
    const float* bias,        // [N]
    const uint8_t* pictures,  // [w, S - 1, 12]
    const float* plate,       // [w, 12]
    float* out,               // [w, K, 12]
    int64_t width,
    Room& room
) {
  const int64_t channels = head.layer.run;
  Vector<Width> value;
  for (int64_t first = 0; first < width; first += kSpan) {
    const int64_t cells = std::min(kSpan, width - first), numbers = cells * channels;
    for (int64_t i = 0; i < numbers; i += Width) {
      value.load(x + first * channels + i, numbers - i);
      value.silu_for_levels();
      value.store_levels(room.bytes.data() + i, numbers - i, 1.0f / head.step, head.zero);
    }
    multiply<Width, kFast>(head.layer, {room.bytes.data(), channels, 0, 0, 1, cells}, room.raw.data());
    compose_row<Width>(room.raw.data(), bias, pictures + first * (head.sizes.sources - 1) * kPatch,
                       plate + first * kPatch, out + first * head.sizes.frames * kPatch, cells, head.sizes, head.cut);
  }
}

WORLDENV_DOT_FACES(row_of,
                   (const Head& head, const float* x, const float* bias, const uint8_t* pictures, const float* plate,
                    float* out, int64_t count, Room& room),
                   (head, x, bias, pictures, plate, out, count, room))

}  // namespace

Tensor compose_int8(
    const Tensor& x_any,         // [B, h, w, C] float32
    const Tensor& weights,       // [ceil(N / 16), 1, C / 4, 16, 4] int8, N = (3 + S) * K * 4
    const Tensor& affine,        // [2, ceil(N / 16) * 16] float32
    double step,
    int64_t zero,
    const Tensor& bias_any,      // [N] float32
    const Tensor& pictures_any,  // [B, h, w, S - 1, 12] uint8
    const Tensor& plate_any,     // [h, w, 12] float32
    double smallest_share,
    double smallest_correction
) {                              // [B, h, w, K, 12] float32
  for (const Tensor* tensor : {&x_any, &bias_any, &plate_any})
    check(tensor->scalar_type() == ScalarType::Float, "x, bias and plate should be float32");
  check(pictures_any.scalar_type() == ScalarType::Byte, "pictures should be uint8");
  check(x_any.dim() == 4 && bias_any.dim() == 1 && pictures_any.dim() == 5 && plate_any.dim() == 3,
        "x should be [B, h, w, C], bias [N], pictures [B, h, w, S - 1, 12], plate [h, w, 12]");
  check_grid(step, zero);
  const Tensor x = torch::stable::contiguous(x_any), bias = torch::stable::contiguous(bias_any);
  const Tensor pictures = torch::stable::contiguous(pictures_any), plate = torch::stable::contiguous(plate_any);
  const int64_t batch = x.size(0), height = x.size(1), width = x.size(2), channels = x.size(3);
  const int64_t outputs = bias.size(0), known = pictures.size(3), each = (4 + known) * kSub;
  check(known < kMaxSources, "compose_int8 takes at most 64 pictures");
  check(outputs % each == 0, "bias has numbers for no whole number of frames");
  check(channels % kFour == 0, "channels should be a multiple of 4");
  check(pictures.size(0) == batch && pictures.size(1) == height && pictures.size(2) == width &&
            pictures.size(4) == kPatch,
        "pictures should be [B, h, w, S - 1, 12]");
  check(plate.size(0) == height && plate.size(1) == width && plate.size(2) == kPatch, "plate should be [h, w, 12]");

  const Head head{packed(weights, affine, channels, outputs, 1), float(step), float(zero),
                  {outputs / each, known + 1}, {float(smallest_share), float(smallest_correction)}};
  Tensor frames = torch::stable::new_empty(x, {batch, height, width, head.sizes.frames, kPatch});
  const float *from = x.const_data_ptr<float>(), *bias_data = bias.const_data_ptr<float>();
  const uint8_t* picture = pictures.const_data_ptr<uint8_t>();
  const float* plate_data = plate.const_data_ptr<float>();
  float* to = frames.mutable_data_ptr<float>();
  const Function one_row = function();
  torch::stable::parallel_for(0, batch * height, 8, [&](int64_t begin, int64_t end) {
    Room room{std::vector<uint8_t>(kSpan * channels), std::vector<float>(kSpan * outputs)};
    for (int64_t i = begin; i < end; ++i)
      one_row(head, from + i * width * channels, bias_data, picture + i * width * known * kPatch,
              plate_data + i % height * width * kPatch, to + i * width * head.sizes.frames * kPatch, width, room);
  });
  return frames;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "compose_int8(Tensor x, Tensor weights, Tensor affine, float step, int zero, Tensor bias, Tensor pictures, "
      "Tensor plate, float smallest_share, float smallest_correction) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("compose_int8", TORCH_BOX(&worldenv::cpu::compose_int8)); }
