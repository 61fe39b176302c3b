// CPU face of worldenv::residual_int8; worldenv/ops/residual_int8.py says what it means.
// One episode at a time, so that all that lies between its input and its output stays in the cache of a core.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "packed.h"
#include "residual.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

WORLDENV_DOT_FACES(run_block, (const Block& block, const Episode& episode, BlockRoom& room), (block, episode, room))

const float* any_numbers(const std::optional<Tensor>& tensor, int64_t b, int64_t count, const char* message) {
  return tensor ? numbers(*tensor, b, count, message) : nullptr;
}

// How many channels `more` brings to an x of these sizes.
int64_t channels_of(const Tensor& more, int64_t batch, int64_t height, int64_t width) {
  check(more.dim() == 4 && more.scalar_type() == ScalarType::Float && more.size(0) == batch && height % 2 == 0 &&
            width % 2 == 0 && more.size(1) == height / 2 && more.size(2) == width / 2 && more.size(3) % kShuffle == 0,
        "more should be float32 [B, H / 2, W / 2, 4 * M]");
  return more.size(3) / kShuffle;
}

// The episodes of a batch, given the first.
void run_all(const Block& block, const Episode& first, int64_t batch) {
  const int64_t positions = block.height * block.width;
  const Function run_one = function();
  torch::stable::parallel_for(0, positions ? batch : 0, 1, [&](int64_t begin, int64_t end) {
    BlockRoom room = room_of(block, first.more);
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
  check_grid(step1, zero1), check_grid(step2, zero2);
  if (skip) check_grid(step3, zero3);
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
  Block block{height, width, channels, beside, outputs, packed(conv1, affine1, channels, outputs, 0),
              packed(conv2, affine2, outputs, outputs, conv1.size(1)), {},
              {height, width, channels, weight1 ? groups : 0, float(eps), kind, float(step1), float(zero1),
               (width + 2 * border) * channels},
              {height, width, outputs, groups, float(eps), kind, float(step2), float(zero2),
               (width + 2 * border) * outputs},
              float(step3), float(zero3)};
  if (skip) block.skip = packed(*skip, *affine3, channels, outputs, 1);
  const Condition before{any_numbers(weight1, 0, channels, "weight1 should be float32 [C]"),
                         any_numbers(bias1, 0, channels, "bias1 should be float32 [C]"), nullptr, nullptr};
  const Condition between{numbers(weight2, 0, outputs, "weight2 should be float32 [O]"),
                          numbers(bias2, 0, outputs, "bias2 should be float32 [O]"),
                          batch ? any_numbers(scale, batch, outputs, "scale should be float32 [B, O]") : nullptr,
                          batch ? any_numbers(shift, batch, outputs, "shift should be float32 [B, O]") : nullptr};
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
