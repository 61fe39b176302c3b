// CPU face of worldenv::unpatchify; worldenv/ops/unpatchify.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "patch.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Half to even, as torch rounds: 1.5 * 2^23 leaves no bits for a fraction.
inline uint8_t to_byte(float value, bool& finite) {
  const bool sound = std::fabs(value) <= 3.4028234e38f;
  finite &= sound;
  const float scaled = (std::clamp(sound ? value : 0.0f, -1.0f, 1.0f) + 1.0f) * 127.5f;
  return uint8_t((scaled + 12582912.0f) - 12582912.0f);
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
  const int64_t size = height * width * kPatch, row = 2 * width * 3;
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      bool good = true;
      for (int64_t i = 0; i < height * width * count; ++i) {
        const float* patch = from + b * size * count + i * kPatch;
        const int64_t n = i % count, x = i / count % width, y = i / count / width;
        uint8_t* pixel = to + (b * count + n) * size + 2 * y * row + 2 * x * 3;
        for (int64_t c = 0; c < 3; ++c) {
          pixel[c] = to_byte(patch[4 * c], good), pixel[c + 3] = to_byte(patch[4 * c + 1], good);
          pixel[row + c] = to_byte(patch[4 * c + 2], good), pixel[row + c + 3] = to_byte(patch[4 * c + 3], good);
        }
      }
      sound[b] = good;
    }
  });
  return {frames, finite};
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) { m.def("unpatchify(Tensor patches) -> (Tensor, Tensor)"); }

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("unpatchify", TORCH_BOX(&worldenv::cpu::unpatchify)); }
