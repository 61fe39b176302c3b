// CPU face of worldenv::unpatchify; worldenv/ops/unpatchify.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>

#include "patch.h"
#include "vector.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The patches of one episode, [h, w, N, 12], to frames [N, 2 h, 2 w, 3]; returns whether all numbers are finite.
bool to_frames(const float* patch, int64_t height, int64_t width, int64_t count, uint8_t* frames) {
  const int64_t row = 2 * width * 3;
  Vector<4> value;
  Vector<4>::Ints sound = Vector<4>::Ints{} - 1;
  uint8_t four[4];
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x)
      for (int64_t n = 0; n < count; ++n) {
        uint8_t* pixel = frames + n * 2 * height * row + 2 * y * row + 2 * x * 3;
        for (int64_t c = 0; c < 3; ++c, patch += 4) {
          value.load(patch);
          const Vector<4>::Ints finite = value.v - value.v == 0.0f;
          sound &= finite;
          value.v = (finite ? value.v : Vector<4>::Floats{}) + 1.0f;
          value.store_levels(four, 4, 127.5f, 0.0f);
          pixel[c] = four[0], pixel[c + 3] = four[1], pixel[row + c] = four[2], pixel[row + c + 3] = four[3];
        }
      }
  return sound[0] && sound[1] && sound[2] && sound[3];
}

}  // namespace

std::tuple<Tensor, Tensor> unpatchify(const Tensor& patches_any  // [B, h, w, N, 12] float32
) {                                                              // [B, N, 2 h, 2 w, 3] uint8; [B] bool
  STD_TORCH_CHECK(patches_any.scalar_type() == ScalarType::Float && patches_any.dim() == 5 &&
                      patches_any.size(4) == kPatch,
                  "patches should be float32 [B, h, w, N, 12]");
  const Tensor patches = torch::stable::contiguous(patches_any);
  const int64_t batch = patches.size(0), height = patches.size(1), width = patches.size(2), count = patches.size(3);
  Tensor frames = torch::stable::new_empty(patches, {batch, count, 2 * height, 2 * width, 3}, ScalarType::Byte);
  Tensor finite = torch::stable::new_empty(patches, {batch}, ScalarType::Bool);
  const float* from = patches.const_data_ptr<float>();
  uint8_t* to = frames.mutable_data_ptr<uint8_t>();
  bool* sound = finite.mutable_data_ptr<bool>();
  const int64_t size = height * width * count * kPatch;
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) sound[b] = to_frames(from + b * size, height, width, count, to + b * size);
  });
  return {frames, finite};
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) { m.def("unpatchify(Tensor patches) -> (Tensor, Tensor)"); }

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("unpatchify", TORCH_BOX(&worldenv::cpu::unpatchify)); }
