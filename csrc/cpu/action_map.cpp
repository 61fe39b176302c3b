// CPU face of worldenv::action_map; worldenv/ops/action_map.py says what it means.
// A stroke touches only the rows and columns of its 4-sigma window, and takes an exponential only within 4 sigma.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kChannels = 4;
constexpr float kSigma = 1.5f;  // px at H = 64
constexpr float kSigmaFinger = 1.0f;
constexpr float kStrokeFloor = 3.3546262790251185e-4f;  // exp(-8): a stroke ends at 4 sigma
constexpr float kTipClosed = 0.012f;                    // m
constexpr float kTipOpening = 0.033f;                   // m
constexpr float kFinger = 0.05f;                        // m
constexpr float kHandHalf = 0.05f;                      // m
constexpr float kTool = 0.4f;                           // m
constexpr float kFadeHeight = 0.25f;                    // m
constexpr float kNear = 0.05f;                          // m
constexpr int64_t kSizeMin = 8;                         // px
constexpr int64_t kGrainBytes = 1 << 18;                // a thread is not worth waking for less

struct Point {
  float x, y, z;  // m, world
};

struct Span {
  int64_t begin, end;
};

float sinc(float x) { return std::fabs(x) < 1e-4f ? 1.0f : std::sin(x) / x; }

Point operator*(float scale, const Point& p) { return {scale * p.x, scale * p.y, scale * p.z}; }
Point operator+(const Point& p, const Point& q) { return {p.x + q.x, p.y + q.y, p.z + q.z}; }

struct Axes {
  Point x, z;
};

// Rodrigues' formula applied to the world's x and z axes.
Axes rotated_axes(const float* axis_angle) {
  const float wx = axis_angle[0], wy = axis_angle[1], wz = axis_angle[2];
  const float angle = std::sqrt(wx * wx + wy * wy + wz * wz), cosine = std::cos(angle);
  const float sine = sinc(angle), half = sinc(0.5f * angle), versine = 0.5f * half * half;
  return {{cosine + versine * wx * wx, sine * wz + versine * wx * wy, versine * wx * wz - sine * wy},
          {sine * wy + versine * wx * wz, versine * wy * wz - sine * wx, cosine + versine * wz * wz}};
}

// Pixels whose centre may lie within `radius` of low..high. Written so that NaN gives an empty span, and clamped before
// the conversion, because a float beyond int64 has no integer value.
Span window(float low, float high, float radius, int64_t size) {
  low -= radius + 1.0f;
  high += radius + 1.0f;
  if (!(high > 0.0f && low < float(size))) return {0, 0};
  return {int64_t(std::max(low, 0.0f)), int64_t(std::min(high + 1.0f, float(size)))};
}

class Canvas {
 public:
  Canvas(const float* projection, int64_t height, int64_t width)
      : projection_(projection), height_(height), width_(width) {}

  // Keep, at each pixel, the maximum of what is there and of the stroke from `begin` to `end`.
  void draw(const Point& begin, const Point& end, float sigma_at_64, float brightness, float* image) const {
    Point a = seen(begin), b = seen(end);
    if (!(std::max(a.z, b.z) > kNear)) return;
    const Point a0 = a;
    if (a.z < kNear) a = a + (kNear - a.z) / (b.z - a.z) * (b + -1.0f * a);
    if (b.z < kNear) b = b + (kNear - b.z) / (a0.z - b.z) * (a0 + -1.0f * b);
    const float ax = a.x / a.z, ay = a.y / a.z, dx = b.x / b.z - ax, dy = b.y / b.z - ay;
    const float per_length = 1.0f / std::max(dx * dx + dy * dy, 1e-12f);
    const float sigma = sigma_at_64 * float(height_) / 64.0f, radius = 4.0f * sigma, falloff = -0.5f / (sigma * sigma);
    const Span columns = window(std::min(ax, ax + dx), std::max(ax, ax + dx), radius, width_);
    const Span rows = window(std::min(ay, ay + dy), std::max(ay, ay + dy), radius, height_);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const float y = float(i) + 0.5f - ay;
      for (int64_t j = columns.begin; j < columns.end; ++j) {
        const float x = float(j) + 0.5f - ax;
        const float along = std::clamp((x * dx + y * dy) * per_length, 0.0f, 1.0f);
        const float across_x = x - along * dx, across_y = y - along * dy;
        const float squared = across_x * across_x + across_y * across_y;
        if (!(squared <= radius * radius * 1.001f)) continue;
        const float value = std::exp(squared * falloff);
        float& out = image[i * width_ + j];
        if (value >= kStrokeFloor) out = std::max(out, value * brightness);
      }
    }
  }

 private:
  Point seen(const Point& p) const {  // homogeneous pixel
    const float* m = projection_;
    return {m[0] * p.x + m[1] * p.y + m[2] * p.z + m[3], m[4] * p.x + m[5] * p.y + m[6] * p.z + m[7],
            m[8] * p.x + m[9] * p.y + m[10] * p.z + m[11]};
  }

  const float* projection_;  // [3, 4]
  int64_t height_, width_;
};

void draw_pose(
    const float* pose,  // [7]
    const Canvas& canvas,
    float* image,  // [kChannels, H, W], zeroed
    int64_t plane  // H * W
) {
  if (!std::all_of(pose, pose + 7, [](float value) { return std::isfinite(value); })) return;
  const Point position{pose[0], pose[1], pose[2]}, foot{pose[0], pose[1], 0.0f};
  const Axes axes = rotated_axes(pose + 3);
  const Point finger = kFinger * axes.z, hand = position + finger;
  const float reach = kTipClosed + kTipOpening * pose[6];
  const float nearness = 1.0f - std::clamp(position.z / kFadeHeight, 0.0f, 1.0f);

  canvas.draw(hand, position + kTool * axes.z, kSigma, 1.0f, image);
  for (const float side : {reach, -reach}) {
    const Point tip = position + side * axes.x;
    canvas.draw(tip, tip + finger, kSigmaFinger, 1.0f, image + plane);
  }
  canvas.draw(hand + -kHandHalf * axes.x, hand + kHandHalf * axes.x, kSigma, 1.0f, image + 2 * plane);
  canvas.draw(foot, foot, kSigma, 0.25f + 0.75f * nearness, image + 3 * plane);
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
  const float* camera = matrix.const_data_ptr<float>();
  float* map = maps.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (kChannels * plane * int64_t(sizeof(float))));
  torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    Canvas canvas(camera, height, width);
    for (int64_t b = begin; b < end; ++b) {
      float* image = map + b * kChannels * plane;
      std::fill_n(image, kChannels * plane, 0.0f);
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
