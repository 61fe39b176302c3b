// CPU face of worldenv::action_map; worldenv/ops/action_map.py says what it means.
// Each blob touches only its 4-sigma window and is separable, so an image costs four windows of multiplications and
// some 40 exponentials per blob; clearing the image is what takes the time, and wider vectors would not help.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr float kSigmaPoint = 1.5f;  // px at H = 64
constexpr float kSigmaTip = 1.0f;
constexpr float kBlobFloor = 3.3546262790251185e-4f;  // exp(-8): a blob ends at 4 sigma
constexpr float kTipClosed = 0.012f;                  // m
constexpr float kTipOpening = 0.033f;                 // m
constexpr float kFadeHeight = 0.25f;                  // m
constexpr int64_t kSizeMin = 8;                       // px
constexpr int64_t kGrainBytes = 1 << 18;              // a thread is not worth waking for less

struct Point {
  float x, y, z;  // m, world
};

struct Span {
  int64_t begin, end;
};

float sinc(float x) { return std::fabs(x) < 1e-4f ? 1.0f : std::sin(x) / x; }

// Rodrigues' formula applied to the world's x axis.
Point rotate_x_axis(const float* axis_angle) {
  const float wx = axis_angle[0], wy = axis_angle[1], wz = axis_angle[2];
  const float angle = std::sqrt(wx * wx + wy * wy + wz * wz);
  const float sine = sinc(angle), half = sinc(0.5f * angle), versine = 0.5f * half * half;
  return {std::cos(angle) + versine * wx * wx, sine * wz + versine * wx * wy, versine * wx * wz - sine * wy};
}

// Pixels whose centre may lie within `radius` of `center`. Written so that NaN gives an empty span, and clamped before
// the conversion, because a float beyond int64 has no integer value.
Span window(float center, float radius, int64_t size) {
  const float low = center - radius - 1.0f, high = center + radius + 1.0f;
  if (!(high > 0.0f && low < float(size))) return {0, 0};
  return {int64_t(std::max(low, 0.0f)), int64_t(std::min(high + 1.0f, float(size)))};
}

class Canvas {
 public:
  Canvas(const float* projection, int64_t height, int64_t width)
      : projection_(projection), height_(height), width_(width), row_(width) {}

  // Keep, at each pixel, the maximum of what is there and of the blob at `point`.
  void draw(Point point, float sigma_at_64, float brightness, float* image) {
    const float* p = projection_;
    const float depth = p[8] * point.x + p[9] * point.y + p[10] * point.z + p[11];
    if (!(depth > 0.0f)) return;
    const float x = (p[0] * point.x + p[1] * point.y + p[2] * point.z + p[3]) / depth;
    const float y = (p[4] * point.x + p[5] * point.y + p[6] * point.z + p[7]) / depth;
    const float sigma = sigma_at_64 * float(height_) / 64.0f, falloff = -0.5f / (sigma * sigma);
    const Span columns = window(x, 4.0f * sigma, width_), rows = window(y, 4.0f * sigma, height_);
    for (int64_t j = columns.begin; j < columns.end; ++j) row_[j] = gauss(float(j) + 0.5f - x, falloff);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const float across = gauss(float(i) + 0.5f - y, falloff);
      float* out = image + i * width_;
      for (int64_t j = columns.begin; j < columns.end; ++j) {
        const float value = across * row_[j];
        if (value >= kBlobFloor) out[j] = std::max(out[j], value * brightness);
      }
    }
  }

 private:
  static float gauss(float distance, float falloff) { return std::exp(distance * distance * falloff); }

  const float* projection_;   // [3, 4]
  int64_t height_, width_;
  std::vector<float> row_;    // [W], the blob along x
};

void draw_pose(
    const float* pose,  // [7]
    Canvas& canvas,
    float* image,  // [3, H, W], zeroed
    int64_t plane  // H * W
) {
  if (!std::all_of(pose, pose + 7, [](float value) { return std::isfinite(value); })) return;
  const Point position{pose[0], pose[1], pose[2]};
  canvas.draw(position, kSigmaPoint, 1.0f, image);

  const Point closing = rotate_x_axis(pose + 3);
  const float reach = kTipClosed + kTipOpening * pose[6];
  for (const float side : {reach, -reach}) {
    const Point tip{position.x + side * closing.x, position.y + side * closing.y, position.z + side * closing.z};
    canvas.draw(tip, kSigmaTip, 1.0f, image + plane);
  }

  const float nearness = 1.0f - std::clamp(position.z / kFadeHeight, 0.0f, 1.0f);
  canvas.draw({position.x, position.y, 0.0f}, kSigmaPoint, 0.25f + 0.75f * nearness, image + 2 * plane);
}

}  // namespace

Tensor action_map(
    const Tensor& proprio,     // [B, 7] float32
    const Tensor& projection,  // [3, 4] float32
    int64_t height,
    int64_t width
) {                            // [B, 3, H, W] float32
  STD_TORCH_CHECK(proprio.dim() == 2 && proprio.size(1) == 7, "proprio should be [B, 7]");
  STD_TORCH_CHECK(projection.dim() == 2 && projection.size(0) == 3 && projection.size(1) == 4,
                  "projection should be [3, 4]");
  STD_TORCH_CHECK(proprio.scalar_type() == ScalarType::Float && projection.scalar_type() == ScalarType::Float,
                  "proprio and projection should be float32");
  STD_TORCH_CHECK(height >= kSizeMin && width >= kSizeMin, "height and width should be at least 8");

  const Tensor poses = torch::stable::contiguous(proprio), matrix = torch::stable::contiguous(projection);
  const int64_t batch = proprio.size(0), plane = height * width;
  Tensor maps = torch::stable::new_empty(proprio, {batch, 3, height, width});
  const float* pose = poses.const_data_ptr<float>();
  const float* camera = matrix.const_data_ptr<float>();
  float* map = maps.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (3 * plane * int64_t(sizeof(float))));
  torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    Canvas canvas(camera, height, width);
    for (int64_t b = begin; b < end; ++b) {
      float* image = map + b * 3 * plane;
      std::fill_n(image, 3 * plane, 0.0f);
      draw_pose(pose + b * 7, canvas, image, plane);
    }
  });
  return maps;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def("action_map(Tensor proprio, Tensor projection, int height, int width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("action_map", TORCH_BOX(&worldenv::cpu::action_map)); }
