// CPU face of worldenv::encoder_int8; worldenv/ops/encoder_int8.py says what it means.
// One frame at a time, so that all that lies between its pixels and its features stays in the cache of a core.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "conv.h"
#include "packed.h"
#include "patch.h"
#include "residual.h"
#include "spatial_softmax.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

struct Encoder {
  int64_t height, width;  // of a frame
  Conv first, second, look;
  std::vector<Block> blocks;
  std::vector<Condition> conditions;  // of the first frame
};

struct Room {
  std::vector<uint8_t> patches, levels, first, second, look;
  std::vector<float> features, next;
  std::vector<BlockRoom> blocks;

  explicit Room(const Encoder& encoder)
      : patches(encoder.height * encoder.width * 3), levels(size(encoder.second)),
        first(encoder.first.room(), uint8_t(encoder.first.zero)),
        second(encoder.second.room(), uint8_t(encoder.second.zero)), look(encoder.look.room()),
        features(size(encoder.look)), next(size(encoder.look)) {
    for (const Block& block : encoder.blocks) blocks.push_back(room_of(block, false));
  }

  static int64_t size(const Conv& conv) { return conv.height * conv.width * conv.channels; }
};

// `at` is which frame of the batch it is.
template <int Width, bool kFast>
WORLDENV_INLINE void run(const Encoder& encoder, const uint8_t* frame, int64_t at, float* to, Room& room) {
  float *features = room.features.data(), *next = room.next.data();
  to_patches(frame, encoder.height, encoder.width, 1, room.patches.data());
  convolve<Width, kFast>(encoder.first, {room.patches.data(), nullptr, nullptr, room.levels.data(), nullptr},
                         room.first.data());
  convolve<Width, kFast>(encoder.second, {room.levels.data(), nullptr, nullptr, nullptr, features},
                         room.second.data());
  for (size_t i = 0; i < encoder.blocks.size(); ++i) {
    Condition between = encoder.conditions[i];
    const int64_t pitch = 2 * encoder.blocks[i].outputs;
    between.scale += at * pitch, between.shift += at * pitch;
    run_block<Width, kFast>(encoder.blocks[i], {features, nullptr, {}, between, next}, room.blocks[i]);
    std::swap(features, next);
  }
  convolve<Width, kFast>(encoder.look, {nullptr, features, nullptr, nullptr, next}, room.look.data());
  look<Width>(next, encoder.look.height, encoder.look.width, encoder.look.layer.outputs, to);
}

WORLDENV_DOT_FACES(run,
                   (const Encoder& encoder, const uint8_t* frame, int64_t at, float* to, Room& room),
                   (encoder, frame, at, to, room))

}  // namespace

Tensor encoder_int8(
    const Tensor& frames_any,           // [B, H, W, 3] uint8
    const Tensors& weights,             // int8, of the stem's two layers, two of each block, and the last
    const Tensors& affines,             // float32
    const std::vector<double>& steps,   // of their grids
    const std::vector<int64_t>& zeros,
    const Tensors& norms,               // weight and bias [C] float32 of each block
    const Tensors& conditions,          // scale and shift [B, 2 C] float32 of each block
    int64_t inner,                      // channels between the stem's two layers
    int64_t channels,                   // C
    int64_t groups,
    double eps
) {                                     // [B, 3 C] float32
  check(frames_any.dim() == 4 && frames_any.scalar_type() == ScalarType::Byte && frames_any.size(3) == 3 &&
            frames_any.size(1) % 4 == 0 && frames_any.size(2) % 4 == 0 && frames_any.size(1) > 4 &&
            frames_any.size(2) > 4,
        "frames should be uint8 [B, H, W, 3], H and W multiples of 4 above 4");
  const size_t blocks = conditions.size(), layers = 2 * blocks + 3;
  check(weights.size() == layers && affines.size() == layers && steps.size() == layers && zeros.size() == layers &&
            norms.size() == 2 * blocks,
        "there should be three layers more than two for each block, and two norms for each block");
  for (size_t i = 0; i < layers; ++i) check_grid(steps[i], zeros[i]);
  const Tensor frames = torch::stable::contiguous(frames_any);
  const int64_t batch = frames.size(0), height = frames.size(1), width = frames.size(2);
  const int64_t h = height / 4, w = width / 4, c = channels;
  check(groups > 0 && c > 0 && c % groups == 0 && c % kFour == 0 && inner > 0 && inner % kFour == 0,
        "groups and 4 should divide the channels, and 4 those within the stem");
  const auto layer = [&](size_t i, int64_t inputs, int64_t outputs, int64_t rows) {
    return packed(weights[i], affines[i], inputs, outputs, rows);
  };
  const auto conv = [&](size_t i, int64_t lines, int64_t count, int64_t stride, const Packed& of, int64_t inputs,
                        bool relu, double to_step, int64_t to_zero) {
    return Conv{lines, count, inputs, stride, of, float(steps[i]), float(zeros[i]), relu, float(to_step),
                float(to_zero)};
  };
  Encoder encoder{height, width,
                  conv(0, 2 * h, 2 * w, 1, layer(0, kPatch, inner, 0), kPatch, true, steps[1], zeros[1]),
                  conv(1, 2 * h, 2 * w, 2, layer(1, inner, c, 0), inner, true, 0.0, 0),
                  conv(layers - 1, h, w, 1, layer(layers - 1, c, c, 1), c, false, 0.0, 0), {}, {}};
  for (size_t i = 0; i < blocks; ++i) {
    const size_t one = 2 * i + 2, two = one + 1;
    const Packed first = layer(one, c, c, 0), second = layer(two, c, c, first.rows);
    const int64_t pitch = (w + first.rows / 2 * 2) * c;
    const Norm none{h, w, c, 0, float(eps), Activation::kRelu, float(steps[one]), float(zeros[one]), pitch};
    const Norm norm{h, w, c, groups, float(eps), Activation::kRelu, float(steps[two]), float(zeros[two]), pitch};
    encoder.blocks.push_back({h, w, c, 0, c, first, second, {}, none, norm, 0.0f, 0.0f});
    const float* film = batch ? numbers(conditions[i], batch, 2 * c, "conditions should be float32 [B, 2 C]") : nullptr;
    encoder.conditions.push_back({numbers(norms[2 * i], 0, c, "norms should be float32 [C]"),
                                  numbers(norms[2 * i + 1], 0, c, "norms should be float32 [C]"), film, film + c});
  }
  Tensor y = torch::stable::new_empty(frames, {batch, 3 * c}, ScalarType::Float);
  const uint8_t* from = frames.const_data_ptr<uint8_t>();
  float* to = y.mutable_data_ptr<float>();
  const Function run_one = function();
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    Room room(encoder);
    for (int64_t b = begin; b < end; ++b) run_one(encoder, from + b * height * width * 3, b, to + b * 3 * c, room);
  });
  return y;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "encoder_int8(Tensor frames, Tensor[] weights, Tensor[] affines, float[] steps, int[] zeros, Tensor[] norms, "
      "Tensor[] conditions, int inner, int channels, int groups, float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("encoder_int8", TORCH_BOX(&worldenv::cpu::encoder_int8)); }
