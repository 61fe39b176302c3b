#include "render.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace worldenv::tabletop {
namespace {

const Vec kPalette[] = {{210, 45, 45},  {50, 165, 70},  {45, 85, 210}, {235, 200, 40},
                        {145, 60, 175}, {240, 130, 35}, {60, 190, 200}, {235, 235, 235}};
const Vec kLight = {-0.35f, -0.45f, 0.82f}, kWood = {95, 75, 60}, kMetal = {70, 72, 78}, kArm = {40, 42, 46};
constexpr float kFar = 1e9f;

uint8_t to_byte(float v) { return uint8_t(std::min(std::max(v, 0.f), 255.f) + 0.5f); }

void identity(float axis[9]) {
  const float m[9] = {1, 0, 0, 0, 1, 0, 0, 0, 1};
  std::copy(m, m + 9, axis);
}

}  // namespace

Renderer::Renderer(int size, const double* k, const double* e) : size_(size), samples_(2 * size) {
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 4; ++c)
      projection_[4 * r + c] = float(k[3 * r] * e[c] + k[3 * r + 1] * e[4 + c] + k[3 * r + 2] * e[8 + c]);
  double eye[3];
  for (int c = 0; c < 3; ++c) eye[c] = -(e[c] * e[3] + e[4 + c] * e[7] + e[8 + c] * e[11]);
  eye_ = {float(eye[0]), float(eye[1]), float(eye[2])};
  const size_t n = size_t(samples_) * samples_;
  ray_.resize(n);
  table_.resize(2 * n);
  background_.resize(3 * n);
  for (int v = 0; v < samples_; ++v) {
    for (int u = 0; u < samples_; ++u) {
      const size_t i = size_t(v) * samples_ + u;
      const double cx = ((u + 0.5) / 2 - k[2]) / k[0], cy = ((v + 0.5) / 2 - k[5]) / k[4];
      Vec& d = ray_[i];
      d = {float(e[0] * cx + e[4] * cy + e[8]), float(e[1] * cx + e[5] * cy + e[9]),
           float(e[2] * cx + e[6] * cy + e[10])};
      const bool down = d.z < -1e-6f;
      const float t = down ? -eye_.z / d.z : kFar;
      const float x = eye_.x + t * d.x, y = eye_.y + t * d.y;
      table_[2 * i] = x;
      table_[2 * i + 1] = y;
      const bool on = down && std::abs(x) < 0.26f && y > -0.25f && y < 0.28f;
      const float shade = 1.f - 0.25f * (y + 0.25f);
      const Vec c = on ? Vec{186 * shade, 164 * shade, 138 * shade} : Vec{52, 56, 64};
      background_[3 * i] = to_byte(c.x);
      background_[3 * i + 1] = to_byte(c.y);
      background_[3 * i + 2] = to_byte(c.z);
    }
  }
}

Renderer::Rect Renderer::bounds(const Vec* corners, int count) const {
  float x0 = kFar, y0 = kFar, x1 = -kFar, y1 = -kFar;
  for (int i = 0; i < count; ++i) {
    const Vec& p = corners[i];
    const float* m = projection_;
    const float w = std::max(m[8] * p.x + m[9] * p.y + m[10] * p.z + m[11], 0.02f);
    const float u = 2 * (m[0] * p.x + m[1] * p.y + m[2] * p.z + m[3]) / w;
    const float v = 2 * (m[4] * p.x + m[5] * p.y + m[6] * p.z + m[7]) / w;
    x0 = std::min(x0, u); x1 = std::max(x1, u); y0 = std::min(y0, v); y1 = std::max(y1, v);
  }
  const auto cut = [&](float v) { return int(std::min(std::max(v, 0.f), float(samples_))); };
  return {cut(std::floor(x0 - 1)), cut(std::floor(y0 - 1)), cut(std::ceil(x1 + 1)), cut(std::ceil(y1 + 1))};
}

Renderer::Rect Renderer::bounds_of(const Solid& s) const {
  Vec corner[8];
  for (int i = 0; i < 8; ++i) {
    const float a = i & 1 ? s.half.x : -s.half.x, b = i & 2 ? s.half.y : -s.half.y, c = i & 4 ? s.half.z : -s.half.z;
    corner[i] = {s.center.x + s.axis[0] * a + s.axis[1] * b + s.axis[2] * c,
                 s.center.y + s.axis[3] * a + s.axis[4] * b + s.axis[5] * c,
                 s.center.z + s.axis[6] * a + s.axis[7] * b + s.axis[8] * c};
  }
  return bounds(corner, 8);
}

void Renderer::disc_on_table(Canvas& canvas, float x, float y, float radius, float strength) const {
  const Vec corner[4] = {{x - radius, y - radius, 0}, {x + radius, y - radius, 0},
                         {x - radius, y + radius, 0}, {x + radius, y + radius, 0}};
  const Rect r = bounds(corner, 4);
  for (int v = r.y0; v < r.y1; ++v)
    for (int u = r.x0; u < r.x1; ++u) {
      const size_t i = size_t(v) * samples_ + u;
      const float dx = table_[2 * i] - x, dy = table_[2 * i + 1] - y;
      if (dx * dx + dy * dy > radius * radius) continue;
      for (int c = 0; c < 3; ++c) canvas.color[3 * i + c] = uint8_t(canvas.color[3 * i + c] * (1 - strength));
    }
}

void Renderer::square_on_table(Canvas& canvas, float x, float y, float half, Vec color) const {
  const Vec corner[4] = {{x - half, y - half, 0}, {x + half, y - half, 0}, {x - half, y + half, 0},
                         {x + half, y + half, 0}};
  const Rect r = bounds(corner, 4);
  for (int v = r.y0; v < r.y1; ++v)
    for (int u = r.x0; u < r.x1; ++u) {
      const size_t i = size_t(v) * samples_ + u;
      if (std::abs(table_[2 * i] - x) > half || std::abs(table_[2 * i + 1] - y) > half) continue;
      canvas.color[3 * i] = to_byte(color.x);
      canvas.color[3 * i + 1] = to_byte(color.y);
      canvas.color[3 * i + 2] = to_byte(color.z);
    }
}

// Rays are carried into the solid's own frame, where it is an axis-aligned box or an upright cylinder.
void Renderer::solid(Canvas& canvas, const Solid& s) const {
  const Rect rect = bounds_of(s);
  const float* a = s.axis;
  const Vec o = {eye_.x - s.center.x, eye_.y - s.center.y, eye_.z - s.center.z};
  const Vec p = {a[0] * o.x + a[3] * o.y + a[6] * o.z, a[1] * o.x + a[4] * o.y + a[7] * o.z,
                 a[2] * o.x + a[5] * o.y + a[8] * o.z};
  const Vec l = {a[0] * kLight.x + a[3] * kLight.y + a[6] * kLight.z,
                 a[1] * kLight.x + a[4] * kLight.y + a[7] * kLight.z,
                 a[2] * kLight.x + a[5] * kLight.y + a[8] * kLight.z};
  for (int v = rect.y0; v < rect.y1; ++v) {
    for (int u = rect.x0; u < rect.x1; ++u) {
      const size_t i = size_t(v) * samples_ + u;
      const Vec& r = ray_[i];
      const Vec d = {a[0] * r.x + a[3] * r.y + a[6] * r.z, a[1] * r.x + a[4] * r.y + a[7] * r.z,
                     a[2] * r.x + a[5] * r.y + a[8] * r.z};
      const float iz = 1 / d.z, z0 = (-s.half.z - p.z) * iz, z1 = (s.half.z - p.z) * iz;
      float near = std::min(z0, z1), far = std::max(z0, z1), light = d.z > 0 ? -l.z : l.z;
      if (s.round) {
        const float qa = d.x * d.x + d.y * d.y, qb = p.x * d.x + p.y * d.y;
        const float qc = p.x * p.x + p.y * p.y - s.half.x * s.half.x, disc = qb * qb - qa * qc;
        if (disc <= 0) continue;
        const float root = std::sqrt(disc), c0 = (-qb - root) / qa, c1 = (-qb + root) / qa;
        if (c0 > near) { near = c0; light = ((p.x + c0 * d.x) * l.x + (p.y + c0 * d.y) * l.y) / s.half.x; }
        far = std::min(far, c1);
      } else {
        const float ix = 1 / d.x, x0 = (-s.half.x - p.x) * ix, x1 = (s.half.x - p.x) * ix;
        const float iy = 1 / d.y, y0 = (-s.half.y - p.y) * iy, y1 = (s.half.y - p.y) * iy;
        if (std::min(x0, x1) > near) { near = std::min(x0, x1); light = d.x > 0 ? -l.x : l.x; }
        if (std::min(y0, y1) > near) { near = std::min(y0, y1); light = d.y > 0 ? -l.y : l.y; }
        far = std::min(far, std::min(std::max(x0, x1), std::max(y0, y1)));
      }
      if (near > far || near < 0 || near >= canvas.depth[i]) continue;
      canvas.depth[i] = near;
      const float shade = 0.6f + 0.45f * std::max(light, 0.f);
      canvas.color[3 * i] = to_byte(s.color.x * shade);
      canvas.color[3 * i + 1] = to_byte(s.color.y * shade);
      canvas.color[3 * i + 2] = to_byte(s.color.z * shade);
    }
  }
}

void Renderer::entities(Canvas& canvas, const World& w) const {
  for (const Entity& e : w.entity) {
    const float x = float(e.x), y = float(e.y), half = float(e.radius);
    if (e.kind == kPad) square_on_table(canvas, x, y, half, kPalette[int(e.color)]);
    if (e.kind == kTray) square_on_table(canvas, x, y, half, {kWood.x * 0.7f, kWood.y * 0.7f, kWood.z * 0.7f});
  }
  for (const Entity& e : w.entity)
    if (movable(e)) disc_on_table(canvas, float(e.x), float(e.y), float(e.radius) * 1.15f, 0.35f);
  disc_on_table(canvas, float(w.position[0]), float(w.position[1]), 0.018f, 0.4f);
  for (const Entity& e : w.entity) {
    if (!movable(e) && e.kind != kTray) continue;
    const float x = float(e.x), y = float(e.y), r = float(e.radius);
    Solid s{};
    if (e.kind == kTray) {
      const float h = float(kTrayRim) / 2, t = 0.003f;
      s.color = kWood;
      identity(s.axis);
      for (int side = 0; side < 4; ++side) {
        const bool along_x = side < 2;
        const float shift = side % 2 ? r : -r;
        s.center = {x + (along_x ? 0 : shift), y + (along_x ? shift : 0), h};
        s.half = along_x ? Vec{r + t, t, h} : Vec{t, r + t, h};
        solid(canvas, s);
      }
      continue;
    }
    s.center = {x, y, float(e.z + e.height / 2)};
    s.half = {r, r, float(e.height / 2)};
    s.round = e.kind != kBlock;
    s.color = kPalette[int(e.color)];
    const float c = float(std::cos(e.yaw)), n = float(std::sin(e.yaw));
    const float m[9] = {c, -n, 0, n, c, 0, 0, 0, 1};
    std::copy(m, m + 9, s.axis);
    solid(canvas, s);
  }
}

void Renderer::gripper(Canvas& canvas, const World& w) const {
  double axis[9], finger[2][3];
  rotation_matrix(w.rotation, axis);
  finger_positions(w, finger[0], finger[1]);
  Solid s{};
  for (int i = 0; i < 9; ++i) s.axis[i] = float(axis[i]);
  const auto above = [&](const double* p, double h) {
    return Vec{float(p[0] + axis[2] * h), float(p[1] + axis[5] * h), float(p[2] + axis[8] * h)};
  };
  s.color = kMetal;
  for (const auto& f : finger) {
    s.center = above(f, kFingerLength / 2);
    s.half = {0.006f, 0.008f, float(kFingerLength / 2)};
    solid(canvas, s);
  }
  s.color = {225, 225, 230};
  s.center = above(w.position, kFingerLength + 0.008);
  s.half = {0.05f, 0.012f, 0.008f};
  solid(canvas, s);
  s.color = kArm;
  s.center = above(w.position, kFingerLength + 0.016 + 0.2);
  s.half = {0.013f, 0.013f, 0.2f};
  solid(canvas, s);
}

void Renderer::draw(const World& world, Canvas& canvas, uint8_t* frame) const {
  const size_t n = size_t(samples_) * samples_;
  canvas.depth.assign(n, kFar);
  canvas.color = background_;
  entities(canvas, world);
  gripper(canvas, world);
  const uint8_t* c = canvas.color.data();
  for (int v = 0; v < size_; ++v) {
    const uint8_t* top = c + size_t(2 * v) * samples_ * 3;
    const uint8_t* bottom = top + size_t(samples_) * 3;
    uint8_t* out = frame + size_t(v) * size_ * 3;
    for (int u = 0; u < size_; ++u)
      for (int k = 0; k < 3; ++k)
        out[3 * u + k] =
            uint8_t((top[6 * u + k] + top[6 * u + 3 + k] + bottom[6 * u + k] + bottom[6 * u + 3 + k] + 2) / 4);
  }
}

}  // namespace worldenv::tabletop
