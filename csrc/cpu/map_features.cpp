// CPU face of worldenv::map_features; worldenv/ops/map_features.py says what it means.
// One channel of one pose is drawn at a time, in its window of a canvas that stays in the nearest cache, and what is
// not black there is added, times its weights, to the features of its patch. The maps are never held.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "action_map.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kSub = 4;  // the 2 x 2 pixels of a patch
constexpr int64_t kWidest = 16;
constexpr int64_t kGrainBytes = 1 << 18;  // a thread is not worth waking for less

struct Sizes {
  int64_t poses, depth, room;  // room: of a row of weights, a whole number of registers
};

// The smallest that holds both; an empty one holds nothing.
Span unite(const Span& a, const Span& b) {
  if (a.begin >= a.end || b.begin >= b.end) return a.begin < a.end ? a : b;
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

// The smallest whole number of patches that holds these pixels.
Span in_patches(const Span& a) { return {a.begin / 2, (a.end + 1) / 2}; }

// What is drawn in a window of a canvas, times its weights, onto the features.
template <int Width>
WORLDENV_INLINE void add_window(
    const float* canvas,   // [H, W]
    const Span& rows,      // of patches
    const Span& columns,
    const float* weights,  // [4, room]
    float* features,       // [H / 2, W / 2, D]
    int64_t width,         // W
    const Sizes& sizes
) {
  Vector<Width> sum, weight;
  for (int64_t i = rows.begin; i < rows.end; ++i)
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      const float *upper = canvas + 2 * i * width + 2 * j, *lower = upper + width;
      const float pixels[kSub] = {upper[0], upper[1], lower[0], lower[1]};
      if (pixels[0] + pixels[1] + pixels[2] + pixels[3] == 0.0f) continue;  // none is negative
      float* out = features + (i * (width / 2) + j) * sizes.depth;
      for (int64_t d = 0; d < sizes.depth; d += Width) {
        sum.load(out + d, sizes.depth - d);
#pragma GCC unroll 4
        for (int64_t s = 0; s < kSub; ++s) {
          weight.load(weights + s * sizes.room + d);
          sum.v += pixels[s] * weight.v;
        }
        sum.store(out + d, sizes.depth - d);
      }
    }
}

// The features of one view of an episode, zeroed before.
template <int Width>
WORLDENV_INLINE void add_all(
    const Stroke* strokes,  // [N, kStrokes]
    const float* weights,   // [N * kChannels, 4, room]
    float* canvas,          // [H, W]
    float* features,        // [H / 2, W / 2, D]
    const View& view,
    const Sizes& sizes
) {
  for (int64_t n = 0; n < sizes.poses; ++n, strokes += kStrokes)
    for (int64_t c = 0; c < kChannels; ++c, weights += kSub * sizes.room) {
      Span rows{0, 0}, columns{0, 0};
      for (int64_t s = kFirstStroke[c]; s < kFirstStroke[c + 1]; ++s) {
        rows = unite(rows, strokes[s].rows);
        columns = unite(columns, strokes[s].columns);
      }
      rows = in_patches(rows), columns = in_patches(columns);
      for (int64_t i = 2 * rows.begin; i < 2 * rows.end; ++i)
        std::fill(canvas + i * view.width + 2 * columns.begin, canvas + i * view.width + 2 * columns.end, 0.0f);
      for (int64_t s = kFirstStroke[c]; s < kFirstStroke[c + 1]; ++s) draw<Width>(strokes[s], canvas, view.width);
      add_window<Width>(canvas, rows, columns, weights, features, view.width, sizes);
    }
}

using Function = void (*)(const Stroke*, const float*, float*, float*, const View&, const Sizes&);

void add_plain(const Stroke* strokes, const float* weights, float* canvas, float* features, const View& view,
               const Sizes& sizes) {
  add_all<4>(strokes, weights, canvas, features, view, sizes);
}
#if WORLDENV_X86
WORLDENV_AVX2 void add_avx2(const Stroke* strokes, const float* weights, float* canvas, float* features,
                            const View& view, const Sizes& sizes) {
  add_all<8>(strokes, weights, canvas, features, view, sizes);
}
WORLDENV_AVX512 void add_avx512(const Stroke* strokes, const float* weights, float* canvas, float* features,
                                const View& view, const Sizes& sizes) {
  add_all<kWidest>(strokes, weights, canvas, features, view, sizes);
}
#endif

Function function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return add_avx512;
  if (isa() == Isa::kAvx2) return add_avx2;
#endif
  return add_plain;
}

// The D weights of a pixel side by side, zeros after them.
std::vector<float> side_by_side(const float* weight /* [D, N * kChannels, 4] */, const Sizes& sizes) {
  const int64_t pixels = sizes.poses * kChannels * kSub;
  std::vector<float> rows(pixels * sizes.room);
  for (int64_t d = 0; d < sizes.depth; ++d)
    for (int64_t p = 0; p < pixels; ++p) rows[p * sizes.room + d] = weight[d * pixels + p];
  return rows;
}

}  // namespace

Tensor map_features(
    const Tensor& poses_any,   // [B, N, P] float32
    const Tensor& camera_any,  // [B, V, 3, 4] float32
    const Tensor& weight_any,  // [D, N * 4, 2, 2] float32
    const std::vector<double>& gripper_lengths,
    int64_t height,
    int64_t width
) {                            // [B, V, H / 2, W / 2, D] float32
  STD_TORCH_CHECK(poses_any.dim() == 3, "poses should be [B, N, P]");
  const Gripper gripper = checked(poses_any, camera_any, gripper_lengths, height, width);
  STD_TORCH_CHECK(weight_any.dim() == 4 && weight_any.size(1) == poses_any.size(1) * kChannels &&
                      weight_any.size(2) == 2 && weight_any.size(3) == 2,
                  "weight should be [D, N * 4, 2, 2]");
  STD_TORCH_CHECK(weight_any.scalar_type() == ScalarType::Float, "weight should be float32");
  STD_TORCH_CHECK(height % 2 == 0 && width % 2 == 0, "height and width should be even");

  const Tensor poses = torch::stable::contiguous(poses_any), camera = torch::stable::contiguous(camera_any);
  const Tensor weight = torch::stable::contiguous(weight_any);
  const int64_t batch = poses.size(0), row = poses.size(2), views = camera.size(1), depth = weight.size(0);
  const Sizes sizes{poses.size(1), depth, (depth + kWidest - 1) / kWidest * kWidest};
  const std::vector<float> weights = side_by_side(weight.const_data_ptr<float>(), sizes);
  Tensor features = torch::stable::new_empty(poses, {batch, views, height / 2, width / 2, depth});
  const float *pose = poses.const_data_ptr<float>(), *cameras = camera.const_data_ptr<float>();
  float* out = features.mutable_data_ptr<float>();
  const Function add_one = function();
  const int64_t size = height / 2 * (width / 2) * depth;
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, size * int64_t(sizeof(float))));
  torch::stable::parallel_for(0, size ? batch * views : 0, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> canvas(height * width);
    std::vector<Stroke> strokes(sizes.poses * kStrokes);
    for (int64_t bv = begin; bv < end; ++bv) {
      const View view{cameras + bv * kCamera, height, width};
      for (int64_t n = 0; n < sizes.poses; ++n) {
        const auto own = strokes_of(pose + (bv / views * sizes.poses + n) * row, gripper, view);
        std::copy(own.begin(), own.end(), strokes.begin() + n * kStrokes);
      }
      std::fill_n(out + bv * size, size, 0.0f);
      add_one(strokes.data(), weights.data(), canvas.data(), out + bv * size, view, sizes);
    }
  });
  return features;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "map_features(Tensor poses, Tensor camera, Tensor weight, float[] gripper, int height, int width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("map_features", TORCH_BOX(&worldenv::cpu::map_features)); }
