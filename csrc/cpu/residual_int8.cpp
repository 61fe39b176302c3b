// CPU face of worldenv::residual_int8; worldenv/ops/residual_int8.py says what it means.
// One episode at a time, so that all that lies between its input and its output stays in the cache of a core.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dot.h"
#include "norm.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kShuffle = 4;  // places of a coarse position

struct Block {
  int64_t height, width, channels, beside, outputs;  // `beside` of the channels come from `more`
  Packed conv1, conv2, skip;                         // skip without weights: none
  Norm before, between;                              // before with groups 0: none
  float step, zero, skip_step, skip_zero;            // of the grids of conv1 and skip
};

struct Episode {
  const float *x, *more;
  Condition before, between;
  float* y;
};

struct Room {
  std::vector<float> whole, hidden, sums;
  std::vector<uint8_t> first, second, flat;  // the first two with a border
};

// x and what is beside it, moved from depth to space.
void join(const Block& block, const Episode& episode, float* whole) {
  const int64_t own = block.channels - block.beside;
  const float* x = episode.x;
  for (int64_t y = 0; y < block.height; ++y)
    for (int64_t p = 0; p < block.width; ++p, x += own, whole += block.channels) {
      const int64_t coarse = y / 2 * (block.width / 2) + p / 2, sub = y % 2 * 2 + p % 2;
      const float* more = episode.more + coarse * block.beside * kShuffle + sub;
      std::copy(x, x + own, whole);
      for (int64_t c = 0; c < block.beside; ++c) whole[own + c] = more[c * kShuffle];
    }
}

template <int Width>
WORLDENV_INLINE void to_levels(const float* x, int64_t lines, int64_t line, float step, float zero, uint8_t* to,
                               int64_t pitch) {
  Vector<Width> value;
  const float inverse = 1.0f / step;
  for (int64_t row = 0; row < lines; ++row, x += line, to += pitch)
    for (int64_t i = 0; i < line; i += Width) {
      value.load(x + i, line - i);
      value.store_levels(to + i, line - i, inverse, zero);
    }
}

template <int Width, bool kFast>
WORLDENV_INLINE void run(const Block& block, const Episode& episode, Room& room) {
  const int64_t height = block.height, width = block.width, c = block.channels, o = block.outputs;
  const int64_t border = block.conv1.rows / 2, pitch1 = (width + 2 * border) * c, pitch2 = (width + 2 * border) * o;
  const float* x = episode.x;
  if (episode.more) {
    join(block, episode, room.whole.data());
    x = room.whole.data();
  }
  uint8_t *inner1 = room.first.data() + border * (pitch1 + c), *inner2 = room.second.data() + border * (pitch2 + o);
  if (block.before.groups) normalise<Width>(x, episode.before, inner1, room.sums.data(), block.before);
  else to_levels<Width>(x, height, width * c, block.step, block.zero, inner1, pitch1);
  multiply<Width, kFast>(block.conv1, {room.first.data(), c, pitch1, room.hidden.data(), nullptr, height, width});
  normalise<Width>(room.hidden.data(), episode.between, inner2, room.sums.data(), block.between);
  if (block.skip.weights) {
    to_levels<Width>(x, 1, height * width * c, block.skip_step, block.skip_zero, room.flat.data(), 0);
    multiply<Width, kFast>(block.skip, {room.flat.data(), c, 0, episode.y, nullptr, 1, height * width});
    x = episode.y;
  }
  multiply<Width, kFast>(block.conv2, {room.second.data(), o, pitch2, episode.y, x, height, width});
}

using Function = void (*)(const Block&, const Episode&, Room&);

#define WORLDENV_FACE(name, attribute, width, fast)                             \
  attribute void name(const Block& block, const Episode& episode, Room& room) { \
    run<width, fast>(block, episode, room);                                     \
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

void check(bool right, const char* message) { STD_TORCH_CHECK(right, message); }

const float* numbers(const std::optional<Tensor>& tensor, int64_t b, int64_t channels, const char* message) {
  if (!tensor) return nullptr;
  check(tensor->scalar_type() == ScalarType::Float && tensor->is_contiguous(), message);
  check(b ? tensor->dim() == 2 && tensor->size(0) == b && tensor->size(1) == channels
          : tensor->dim() == 1 && tensor->size(0) == channels, message);
  return tensor->const_data_ptr<float>();
}

Packed packed(const Tensor& weights, const Tensor& affine, int64_t inputs, int64_t outputs) {
  const int64_t blocks = (outputs + kLanes - 1) / kLanes;
  check(weights.dim() == 5 && weights.scalar_type() == ScalarType::Char && weights.is_contiguous() &&
            weights.size(0) == blocks && weights.size(1) % 2 == 1 &&
            weights.size(2) * kFour == weights.size(1) * inputs && weights.size(3) == kLanes &&
            weights.size(4) == kFour,
        "weights should be contiguous int8 [ceil(O / 16), rows, rows * I / 4, 16, 4], rows odd");
  check(affine.dim() == 2 && affine.scalar_type() == ScalarType::Float && affine.is_contiguous() &&
            affine.size(0) == 2 && affine.size(1) == blocks * kLanes,
        "affine should be contiguous float32 [2, ceil(O / 16) * 16]");
  return {weights.const_data_ptr<int8_t>(), affine.const_data_ptr<float>(), outputs, weights.size(1),
          weights.size(2) * kFour};
}

// How many channels `more` brings to an x of these sizes.
int64_t channels_of(const Tensor& more, int64_t batch, int64_t height, int64_t width) {
  check(more.dim() == 4 && more.scalar_type() == ScalarType::Float && more.size(0) == batch && height % 2 == 0 &&
            width % 2 == 0 && more.size(1) == height / 2 && more.size(2) == width / 2 && more.size(3) % kShuffle == 0,
        "more should be float32 [B, H / 2, W / 2, 4 * M]");
  return more.size(3) / kShuffle;
}

Room room_of(const Block& block, bool joins) {
  const int64_t positions = block.height * block.width, border = block.conv1.rows / 2;
  const int64_t bordered = (block.height + 2 * border) * (block.width + 2 * border);
  return {std::vector<float>(joins ? positions * block.channels : 0), std::vector<float>(positions * block.outputs),
          std::vector<float>(3 * std::max(block.before.period(16), block.between.period(16))),
          std::vector<uint8_t>(bordered * block.channels, uint8_t(block.zero)),
          std::vector<uint8_t>(bordered * block.outputs, uint8_t(block.between.zero)),
          std::vector<uint8_t>(block.skip.weights ? positions * block.channels : 0)};
}

// The episodes of a batch, given the first.
void run_all(const Block& block, const Episode& first, int64_t batch) {
  const int64_t positions = block.height * block.width;
  const Function run_one = function();
  torch::stable::parallel_for(0, positions ? batch : 0, 1, [&](int64_t begin, int64_t end) {
    Room room = room_of(block, first.more);
    for (int64_t b = begin; b < end; ++b) {
      Episode episode = first;
      episode.x += b * positions * (block.channels - block.beside), episode.y += b * positions * block.outputs;
      if (first.more) episode.more += b * positions * block.beside;
      if (first.between.scale) episode.between.scale += b * block.outputs, episode.between.shift += b * block.outputs;
      run_one(block, episode, room);
    }
  });
}

}  // namespace

Tensor residual_int8(
    const Tensor& x_any,                       // [B, H, W, C] float32
    const std::optional<Tensor>& more_any,     // [B, H / 2, W / 2, 4 * M] float32
    int64_t groups,
    double eps,
    const std::string& activation,
    const std::optional<Tensor>& weight1,      // [C + M]; null: no normalisation before the first convolution
    const std::optional<Tensor>& bias1,
    const Tensor& conv1, const Tensor& affine1, double step1, int64_t zero1,
    const Tensor& weight2,                     // [O]
    const Tensor& bias2,
    const std::optional<Tensor>& scale,        // [B, O]
    const std::optional<Tensor>& shift,
    const Tensor& conv2, const Tensor& affine2, double step2, int64_t zero2,
    const std::optional<Tensor>& skip, const std::optional<Tensor>& affine3, double step3, int64_t zero3
) {                                            // [B, H, W, O] float32
  check(x_any.dim() == 4 && x_any.scalar_type() == ScalarType::Float, "x should be float32 [B, H, W, C]");
  check(weight2.dim() == 1, "weight2 should be float32 [O]");
  check(activation == "none" || activation == "relu" || activation == "silu", "activation: none, relu or silu");
  check(step1 > 0.0 && step2 > 0.0 && (!skip || step3 > 0.0), "steps should be positive");
  check(weight1.has_value() == bias1.has_value() && scale.has_value() == shift.has_value() &&
            skip.has_value() == affine3.has_value(),
        "weight1 and bias1, scale and shift, skip and affine3 are given together");
  const Tensor x = torch::stable::contiguous(x_any);
  const std::optional<Tensor> more = more_any ? std::optional<Tensor>(torch::stable::contiguous(*more_any)) : more_any;
  const int64_t batch = x.size(0), height = x.size(1), width = x.size(2), outputs = weight2.size(0);
  const int64_t beside = more ? channels_of(*more, batch, height, width) : 0, channels = x.size(3) + beside;
  check(channels % kFour == 0 && outputs % kFour == 0, "channels should be multiples of 4");
  check(groups > 0 && channels % groups == 0 && outputs % groups == 0, "groups should divide the channels");
  check(skip || channels == outputs, "without skip the channels should stay as many");
  const Activation kind = activation_of(activation);
  const int64_t border = conv1.size(1) / 2;
  Block block{height, width, channels, beside, outputs, packed(conv1, affine1, channels, outputs),
              packed(conv2, affine2, outputs, outputs), {},
              {height, width, channels, weight1 ? groups : 0, float(eps), kind, float(step1), float(zero1),
               (width + 2 * border) * channels},
              {height, width, outputs, groups, float(eps), kind, float(step2), float(zero2),
               (width + 2 * border) * outputs},
              float(step1), float(zero1), float(step3), float(zero3)};
  check(block.conv1.rows == block.conv2.rows, "both convolutions should have the same window");
  if (skip) {
    block.skip = packed(*skip, *affine3, channels, outputs);
    check(block.skip.rows == 1, "skip should have a window of 1");
  }
  const Condition before{numbers(weight1, 0, channels, "weight1 should be float32 [C]"),
                         numbers(bias1, 0, channels, "bias1 should be float32 [C]"), nullptr, nullptr};
  const Condition between{numbers(weight2, 0, outputs, "weight2 should be float32 [O]"),
                          numbers(bias2, 0, outputs, "bias2 should be float32 [O]"),
                          batch ? numbers(scale, batch, outputs, "scale should be float32 [B, O]") : nullptr,
                          batch ? numbers(shift, batch, outputs, "shift should be float32 [B, O]") : nullptr};
  Tensor y = torch::stable::new_empty(x, {batch, height, width, outputs});
  run_all(block, {x.const_data_ptr<float>(), more ? more->const_data_ptr<float>() : nullptr, before, between,
                  y.mutable_data_ptr<float>()}, batch);
  return y;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "residual_int8(Tensor x, Tensor? more, int groups, float eps, str activation, Tensor? weight1, Tensor? bias1, "
      "Tensor conv1, Tensor affine1, float step1, int zero1, Tensor weight2, Tensor bias2, Tensor? scale, Tensor? "
      "shift, Tensor conv2, Tensor affine2, float step2, int zero2, Tensor? skip, Tensor? affine3, float step3, int "
      "zero3) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("residual_int8", TORCH_BOX(&worldenv::cpu::residual_int8)); }
