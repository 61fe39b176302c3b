// CPU face of worldenv::action_map; worldenv/ops/action_map.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

#include "action_map.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrainBytes = 1 << 18;  // a thread is not worth waking for less

// The maps of one pose, zeroed before.
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
    const Tensor& proprio,     // [B, 7] float32
    const Tensor& projection,  // [3, 4] float32
    int64_t height,
    int64_t width
) {                            // [B, 4, H, W] float32
  STD_TORCH_CHECK(proprio.dim() == 2 && proprio.size(1) == 7, "proprio should be [B, 7]");
  STD_TORCH_CHECK(projection.dim() == 2 && projection.size(0) == 3 && projection.size(1) == 4,
                  "projection should be [3, 4]");
  STD_TORCH_CHECK(proprio.scalar_type() == ScalarType::Float && projection.scalar_type() == ScalarType::Float,
                  "proprio and projection should be float32");
  STD_TORCH_CHECK(height >= kSizeMin && width >= kSizeMin, "height and width should be at least 8");

  const Tensor poses = torch::stable::contiguous(proprio), matrix = torch::stable::contiguous(projection);
  const int64_t batch = proprio.size(0), plane = height * width;
  Tensor maps = torch::stable::new_empty(proprio, {batch, kChannels, height, width});
  const float* pose = poses.const_data_ptr<float>();
  float* map = maps.mutable_data_ptr<float>();
  const View view{matrix.const_data_ptr<float>(), height, width};
  const Function draw_one = function();
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (kChannels * plane * int64_t(sizeof(float))));
  torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      float* one = map + b * kChannels * plane;
      std::fill_n(one, kChannels * plane, 0.0f);
      draw_one(strokes_of(pose + b * 7, view).data(), one, view);
    }
  });
  return maps;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def("action_map(Tensor proprio, Tensor projection, int height, int width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("action_map", TORCH_BOX(&worldenv::cpu::action_map)); }
