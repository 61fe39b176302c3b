// CPU face of worldenv::patchify; worldenv/ops/patchify.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "patch.h"

namespace worldenv::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

template <typename Number>
void all_to_patches(const Tensor& frames, Tensor& patches) {
  const int64_t count = frames.size(1), height = frames.size(2), width = frames.size(3), size = height * width * 3;
  const Number* from = frames.const_data_ptr<Number>();
  Number* to = patches.mutable_data_ptr<Number>();
  torch::stable::parallel_for(0, frames.size(0) * count, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      to_patches(from + i * size, height, width, count,
                 to + (i / count * (size / kPatch) * count + i % count) * kPatch);
  });
}

}  // namespace

Tensor patchify(const Tensor& frames_any  // [B, N, H, W, 3] uint8 or float32
) {                                       // [B, H / 2, W / 2, N, 12] likewise
  const Tensor frames = torch::stable::contiguous(frames_any);
  const bool bytes = frames.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(bytes || frames.scalar_type() == ScalarType::Float, "frames should be uint8 or float32");
  STD_TORCH_CHECK(frames.dim() == 5 && frames.size(4) == 3 && frames.size(2) % 2 == 0 && frames.size(3) % 2 == 0,
                  "frames should be [B, N, H, W, 3] with H and W even");
  const int64_t batch = frames.size(0), count = frames.size(1), height = frames.size(2), width = frames.size(3);
  Tensor patches = torch::stable::new_empty(frames, {batch, height / 2, width / 2, count, kPatch});
  if (bytes) all_to_patches<uint8_t>(frames, patches);
  else all_to_patches<float>(frames, patches);
  return patches;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) { m.def("patchify(Tensor frames) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("patchify", TORCH_BOX(&worldenv::cpu::patchify)); }
