// The strokes of `action_map`, and how they are drawn; worldenv/ops/action_map.py says what they mean.
// Where a stroke lies is worked out once a pose, by the same code for every instruction set; it then touches only the
// rows and columns of its 4-sigma window, in vector registers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "vector.h"

namespace worldenv::cpu {

constexpr int64_t kChannels = 4;
constexpr int64_t kStrokes = 5;
constexpr int64_t kFirstStroke[kChannels + 1] = {0, 1, 3, 4, kStrokes};  // of every channel; the fingers are two
constexpr float kSigma = 1.5f;  // px at H = 64
constexpr float kSigmaFinger = 1.0f;
constexpr float kStrokeFloor = 3.3546262790251185e-4f;  // exp(-8): a stroke ends at 4 sigma
constexpr float kFadeHeight = 0.25f;                    // m
constexpr float kNear = 0.05f;                          // m
constexpr int64_t kSizeMin = 8;                         // px
constexpr int64_t kPose = 7;                            // numbers that are read of a pose
constexpr int64_t kCamera = 12;                         // numbers of a camera

struct Gripper {
  float tip_closed, tip_opening, finger, hand_half, tool;  // m
};

struct Point {
  float x, y, z;  // m, world
};

struct Span {
  int64_t begin, end;
};

inline float sinc(float x) { return std::fabs(x) < 1e-4f ? 1.0f : std::sin(x) / x; }

inline Point operator*(float scale, const Point& p) { return {scale * p.x, scale * p.y, scale * p.z}; }
inline Point operator+(const Point& p, const Point& q) { return {p.x + q.x, p.y + q.y, p.z + q.z}; }

struct Axes {
  Point x, z;
};

// Rodrigues' formula applied to the world's x and z axes.
inline Axes rotated_axes(const float* axis_angle) {
  const float wx = axis_angle[0], wy = axis_angle[1], wz = axis_angle[2];
  const float angle = std::sqrt(wx * wx + wy * wy + wz * wz), cosine = std::cos(angle);
  const float sine = sinc(angle), half = sinc(0.5f * angle), versine = 0.5f * half * half;
  return {{cosine + versine * wx * wx, sine * wz + versine * wx * wy, versine * wx * wz - sine * wy},
          {sine * wy + versine * wx * wz, versine * wy * wz - sine * wx, cosine + versine * wz * wz}};
}

// Pixels whose centre may lie within `radius` of low..high. Written so that NaN gives an empty span, and clamped before
// the conversion, because a float beyond int64 has no integer value.
inline Span window(float low, float high, float radius, int64_t size) {
  low -= radius + 1.0f;
  high += radius + 1.0f;
  if (!(high > 0.0f && low < float(size))) return {0, 0};
  return {int64_t(std::max(low, 0.0f)), int64_t(std::min(high + 1.0f, float(size)))};
}

// From (x, y) along (dx, dy), pixels; in an empty window where nothing is to be seen of it.
struct Stroke {
  float x, y, dx, dy, per_length;  // per_length: 1 / (dx^2 + dy^2)
  float falloff, brightness;       // brightness * exp(falloff * d^2)
  Span rows{0, 0}, columns{0, 0};
};

// A camera's picture.
struct View {
  const float* camera;  // [3, 4]
  int64_t height, width;

  Point seen(const Point& p) const {  // homogeneous pixel
    const float* m = camera;
    return {m[0] * p.x + m[1] * p.y + m[2] * p.z + m[3], m[4] * p.x + m[5] * p.y + m[6] * p.z + m[7],
            m[8] * p.x + m[9] * p.y + m[10] * p.z + m[11]};
  }

  Stroke stroke(const Point& begin, const Point& end, float sigma_at_64, float brightness = 1.0f) const {
    Point a = seen(begin), b = seen(end);
    if (!(std::max(a.z, b.z) > kNear)) return {};
    const Point a0 = a;
    if (a.z < kNear) a = a + (kNear - a.z) / (b.z - a.z) * (b + -1.0f * a);
    if (b.z < kNear) b = b + (kNear - b.z) / (a0.z - b.z) * (a0 + -1.0f * b);
    const float ax = a.x / a.z, ay = a.y / a.z, dx = b.x / b.z - ax, dy = b.y / b.z - ay;
    const float sigma = sigma_at_64 * float(height) / 64.0f, radius = 4.0f * sigma;
    const Span rows = window(std::min(ay, ay + dy), std::max(ay, ay + dy), radius, height);
    const Span columns = window(std::min(ax, ax + dx), std::max(ax, ax + dx), radius, width);
    if (rows.begin >= rows.end || columns.begin >= columns.end) return {};
    return {ax, ay, dx, dy, 1.0f / std::max(dx * dx + dy * dy, 1e-12f), -0.5f / (sigma * sigma), brightness, rows,
            columns};
  }
};

// Channel by channel, see kFirstStroke. A pose that is not finite has only empty ones.
inline std::array<Stroke, kStrokes> strokes_of(const float* pose /* [7] */, const Gripper& gripper, const View& view) {
  if (!std::all_of(pose, pose + kPose, [](float value) { return std::isfinite(value); })) return {};
  const Point position{pose[0], pose[1], pose[2]}, foot{pose[0], pose[1], 0.0f};
  const Axes axes = rotated_axes(pose + 3);
  const Point finger = gripper.finger * axes.z, hand = position + finger;
  const float reach = gripper.tip_closed + gripper.tip_opening * pose[6];
  const Point left = position + reach * axes.x, right = position + -reach * axes.x;
  const float nearness = 1.0f - std::clamp(position.z / kFadeHeight, 0.0f, 1.0f);
  return {view.stroke(hand, position + gripper.tool * axes.z, kSigma), view.stroke(left, left + finger, kSigmaFinger),
          view.stroke(right, right + finger, kSigmaFinger),
          view.stroke(hand + -gripper.hand_half * axes.x, hand + gripper.hand_half * axes.x, kSigma),
          view.stroke(foot, foot, kSigma, 0.25f + 0.75f * nearness)};
}

// The gripper, once it, the cameras and the size of the picture are what a face can read.
inline Gripper checked(
    const torch::stable::Tensor& poses,   // [B, .., P]
    const torch::stable::Tensor& camera,  // [B, V, 3, 4]
    const std::vector<double>& gripper,
    int64_t height,
    int64_t width
) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(poses.size(poses.dim() - 1) >= kPose, "poses should be of at least 7 numbers each");
  STD_TORCH_CHECK(camera.dim() == 4 && camera.size(0) == poses.size(0) && camera.size(1) > 0 && camera.size(2) == 3 &&
                      camera.size(3) == 4,
                  "camera should be [B, V, 3, 4], with as many episodes as poses");
  STD_TORCH_CHECK(poses.scalar_type() == ScalarType::Float && camera.scalar_type() == ScalarType::Float,
                  "poses and camera should be float32");
  STD_TORCH_CHECK(gripper.size() == 5, "gripper should be five lengths");
  STD_TORCH_CHECK(height >= kSizeMin && width >= kSizeMin, "height and width should be at least 8");
  return {float(gripper[0]), float(gripper[1]), float(gripper[2]), float(gripper[3]), float(gripper[4])};
}

// Keep, at each pixel, the maximum of what is there and of the stroke. NaN anywhere on the way draws nothing.
template <int Width>
WORLDENV_INLINE void draw(const Stroke& stroke, float* image, int64_t width) {
  using Floats = typename Vector<Width>::Floats;
  const Floats nothing{}, one = nothing + 1.0f;
  Floats lane;
#pragma GCC unroll 16
  for (int l = 0; l < Width; ++l) lane[l] = float(l) + 0.5f;
  Vector<Width> value, before;
  for (int64_t i = stroke.rows.begin; i < stroke.rows.end; ++i) {
    const float y = float(i) + 0.5f - stroke.y;
    float* row = image + i * width;
    for (int64_t j = stroke.columns.begin; j < stroke.columns.end; j += Width) {
      const int64_t lanes = stroke.columns.end - j;
      const Floats x = lane + (float(j) - stroke.x);
      const Floats along = (x * stroke.dx + y * stroke.dy) * stroke.per_length;
      const Floats clamped = Vector<Width>::between(along, nothing, one);
      const Floats across_x = x - clamped * stroke.dx, across_y = y - clamped * stroke.dy;
      value.v = (across_x * across_x + across_y * across_y) * stroke.falloff;
      value.exponential();
      value.v = value.v >= kStrokeFloor ? value.v * stroke.brightness : nothing;
      before.load(row + j, lanes);
      value.v = value.v > before.v ? value.v : before.v;
      value.store(row + j, lanes);
    }
  }
}

}  // namespace worldenv::cpu
