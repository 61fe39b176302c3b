// CPU face of worldenv::action_map; worldenv/ops/action_map.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "action_map.h"

namespace worldenv::cpu {
namespace {

using torch::stable::Tensor;

constexpr int64_t kGrainBytes = 1 << 18;  // a thread is not worth waking for less

// The maps of one pose in one view, zeroed before.
template <int Width>
WORLDENV_INLINE void draw_all(const Stroke* strokes, float* maps /* [kChannels, H, W] */, const View& view) {
  for (int64_t c = 0; c < kChannels; ++c, maps += view.height * view.width)
    for (int64_t s = kFirstStroke[c]; s < kFirstStroke[c + 1]; ++s) draw<Width>(strokes[s], maps, view.width);
}

using Function = void (*)(const Stroke*, float*, const View&);

void draw_plain(const Stroke* strokes, float* maps, const View& view) { draw_all<4>(strokes, maps, view); }
#if WORLDENV_X86
WORLDENV_AVX2 void draw_avx2(const Stroke* strokes, float* maps, const View& view) {
  draw_all<8>(strokes, maps, view);
}
WORLDENV_AVX512 void draw_avx512(const Stroke* strokes, float* maps, const View& view) {
  draw_all<16>(strokes, maps, view);
}
#endif

Function function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return draw_avx512;
  if (isa() == Isa::kAvx2) return draw_avx2;
#endif
  return draw_plain;
}

}  // namespace

Tensor action_map(
    const Tensor& poses_any,   // [B, P] float32
    const Tensor& camera_any,  // [B, V, 3, 4] float32
    const std::vector<double>& gripper_lengths,
    int64_t height,
    int64_t width
) {                            // [B, V, 4, H, W] float32
  STD_TORCH_CHECK(poses_any.dim() == 2, "poses should be [B, P]");
  const Gripper gripper = checked(poses_any, camera_any, gripper_lengths, height, width);

  const Tensor poses = torch::stable::contiguous(poses_any), camera = torch::stable::contiguous(camera_any);
  const int64_t batch = poses.size(0), row = poses.size(1), views = camera.size(1), size = kChannels * height * width;
  Tensor maps = torch::stable::new_empty(poses, {batch, views, kChannels, height, width});
  const float *pose = poses.const_data_ptr<float>(), *cameras = camera.const_data_ptr<float>();
  float* map = maps.mutable_data_ptr<float>();
  const Function draw_one = function();
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (size * int64_t(sizeof(float))));
  torch::stable::parallel_for(0, batch * views, grain, [&](int64_t begin, int64_t end) {
    for (int64_t bv = begin; bv < end; ++bv) {
      const View view{cameras + bv * kCamera, height, width};
      float* one = map + bv * size;
      std::fill_n(one, size, 0.0f);
      draw_one(strokes_of(pose + bv / views * row, gripper, view).data(), one, view);
    }
  });
  return maps;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def("action_map(Tensor poses, Tensor camera, float[] gripper, int height, int width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("action_map", TORCH_BOX(&worldenv::cpu::action_map)); }
