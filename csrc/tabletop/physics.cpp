// Quasi-static contacts: fingers and carried objects push what they touch, unsupported objects fall.
#include <algorithm>
#include <cmath>

#include "world.h"

namespace worldenv::tabletop {
namespace {

constexpr double kFallPerSubstep = 0.02, kPushPerSubstep = 0.015;
constexpr double kGraspTolerance = 0.013, kGraspDepth = 0.008, kGraspYaw = 0.5;
constexpr double kPadTolerance = 0.033, kRest = 0.003;

double clamp(double v, double low, double high) { return std::min(std::max(v, low), high); }

bool inside_tray(const Entity& tray, const Entity& e) {
  return std::abs(e.x - tray.x) < tray.radius && std::abs(e.y - tray.y) < tray.radius;
}

double support_height(const World& w, int index) {
  const Entity& e = w.entity[index];
  double support = 0.0;
  for (int i = 0; i < kMaxEntities; ++i) {
    const Entity& f = w.entity[i];
    if (i == index || !movable(f) || i == int(w.held)) continue;
    const double top = f.z + f.height;
    if (e.z > top - 0.006 && std::hypot(e.x - f.x, e.y - f.y) < f.radius) support = std::max(support, top);
  }
  return support;
}

void keep_on_table(Entity& e) {
  e.x = clamp(e.x, -kTableX, kTableX);
  e.y = clamp(e.y, kTableYLow, kTableYHigh);
}

// Move e out of a vertical cylinder at (x, y); returns whether they touched.
bool push_out(Entity& e, double x, double y, double reach, double limit) {
  double dx = e.x - x, dy = e.y - y;
  const double distance = std::hypot(dx, dy), depth = reach - distance;
  if (depth <= 0) return false;
  if (distance < 1e-9) { dx = 0; dy = 1; } else { dx /= distance; dy /= distance; }
  const double move = std::min(depth, limit);
  e.x += dx * move;
  e.y += dy * move;
  keep_on_table(e);
  return true;
}

bool overlap_in_height(double low_a, double high_a, double low_b, double high_b) {
  return low_a < high_b - 0.002 && low_b < high_a - 0.002;
}

void fingers_push(World& w) {
  double finger[2][3];
  finger_positions(w, finger[0], finger[1]);
  for (int i = 0; i < kMaxEntities; ++i) {
    Entity& e = w.entity[i];
    if (!movable(e) || i == int(w.held)) continue;
    for (const auto& f : finger)
      if (overlap_in_height(f[2], f[2] + kFingerLength, e.z, e.z + e.height))
        push_out(e, f[0], f[1], e.radius + kFingerRadius, kPushPerSubstep);
  }
}

void objects_push(World& w) {
  for (int i = 0; i < kMaxEntities; ++i) {
    for (int j = i + 1; j < kMaxEntities; ++j) {
      Entity &a = w.entity[i], &b = w.entity[j];
      if (!movable(a) || !movable(b) || !overlap_in_height(a.z, a.z + a.height, b.z, b.z + b.height)) continue;
      const double reach = a.radius + b.radius, depth = reach - std::hypot(a.x - b.x, a.y - b.y);
      if (depth <= 0) continue;
      if (i == int(w.held)) push_out(b, a.x, a.y, reach, kPushPerSubstep);
      else if (j == int(w.held)) push_out(a, b.x, b.y, reach, kPushPerSubstep);
      else {
        const Entity before = a;
        push_out(a, b.x, b.y, reach - depth / 2, kPushPerSubstep);
        push_out(b, before.x, before.y, reach - depth / 2, kPushPerSubstep);
      }
    }
  }
}

// The rim keeps what is inside in and what is outside out, up to its height.
void tray_walls(World& w) {
  for (const Entity& tray : w.entity) {
    if (tray.kind != kTray) continue;
    for (int i = 0; i < kMaxEntities; ++i) {
      Entity& e = w.entity[i];
      if (!movable(e) || i == int(w.held) || e.z > kTrayRim - 0.002) continue;
      if (inside_tray(tray, e)) {
        const double room = tray.radius - e.radius;
        e.x = clamp(e.x, tray.x - room, tray.x + room);
        e.y = clamp(e.y, tray.y - room, tray.y + room);
        continue;
      }
      const double x = clamp(e.x, tray.x - tray.radius, tray.x + tray.radius);
      const double y = clamp(e.y, tray.y - tray.radius, tray.y + tray.radius);
      push_out(e, x, y, e.radius, kPushPerSubstep);
    }
  }
}

void fall(World& w, double distance) {
  for (int i = 0; i < kMaxEntities; ++i) {
    Entity& e = w.entity[i];
    if (!movable(e) || i == int(w.held)) continue;
    e.z = std::max(support_height(w, i), e.z - distance);
  }
}

void try_grasp(World& w) {
  double axis[9];
  rotation_matrix(w.rotation, axis);
  for (int i = 0; i < kMaxEntities; ++i) {
    const Entity& e = w.entity[i];
    if (e.kind != kBlock && e.kind != kCan) continue;
    const double gap = kFingerClosed + kFingerTravel * w.aperture - kFingerRadius;
    const double dx = e.x - w.position[0], dy = e.y - w.position[1];
    const double along = dx * axis[0] + dy * axis[3], across = -dx * axis[3] + dy * axis[0];
    const double turn = std::remainder(w.rotation[2] - e.yaw, M_PI / 2);
    const bool aligned = std::abs(across) < kGraspTolerance && std::abs(along) < e.radius &&
                         (e.kind == kCan || std::abs(turn) < kGraspYaw);
    const bool level = w.position[2] < e.z + e.height - kGraspDepth && w.position[2] > e.z - 0.005;
    if (gap > e.radius || !aligned || !level) continue;
    w.held = i;
    w.hold_offset[0] = -across * axis[3];
    w.hold_offset[1] = across * axis[0];
    w.hold_offset[2] = e.z - w.position[2];
    w.hold_yaw = e.yaw - w.rotation[2];
    return;
  }
}

void carry(World& w) {
  Entity& e = w.entity[int(w.held)];
  const double gap = kFingerClosed + kFingerTravel * w.aperture - kFingerRadius;
  if (gap > e.radius + 0.002) { w.held = -1; return; }
  e.x = w.position[0] + w.hold_offset[0];
  e.y = w.position[1] + w.hold_offset[1];
  e.yaw = w.rotation[2] + w.hold_yaw;
  keep_on_table(e);
  const double wanted = w.position[2] + w.hold_offset[2];
  e.z = std::max(wanted, support_height(w, int(w.held)));
  w.hold_offset[2] += e.z - wanted;  // pressed on its support, it slips up between the fingers
}

}  // namespace

void rotation_matrix(const double v[3], double out[9]) {
  const double angle = std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
  const double s = std::sin(angle), c = std::cos(angle);
  const double x = angle > 1e-9 ? v[0] / angle : 0, y = angle > 1e-9 ? v[1] / angle : 0;
  const double z = angle > 1e-9 ? v[2] / angle : 1;
  const double m[9] = {c + x * x * (1 - c),     x * y * (1 - c) - z * s, x * z * (1 - c) + y * s,
                       y * x * (1 - c) + z * s, c + y * y * (1 - c),     y * z * (1 - c) - x * s,
                       z * x * (1 - c) - y * s, z * y * (1 - c) + x * s, c + z * z * (1 - c)};
  std::copy(m, m + 9, out);
}

void finger_positions(const World& w, double left[3], double right[3]) {
  double axis[9];
  rotation_matrix(w.rotation, axis);
  double half = kFingerClosed + kFingerTravel * w.aperture;
  if (w.held >= 0) half = std::max(half, w.entity[int(w.held)].radius + kFingerRadius);
  for (int i = 0; i < 3; ++i) {
    left[i] = w.position[i] - half * axis[3 * i];
    right[i] = w.position[i] + half * axis[3 * i];
  }
}

void settle(World& w) {
  for (int i = 0; i < 20; ++i) { objects_push(w); tray_walls(w); fall(w, 1.0); }
}

void step(World& w, const Kinematics& k, const float action[7]) {
  double goal[6];
  for (int i = 0; i < 6; ++i) {
    const double from = i < 3 ? w.position[i] : w.rotation[i - 3];
    const double move = clamp(action[i], -1, 1) * (i < 3 ? k.translation_step : k.rotation_step);
    goal[i] = (clamp(from + move, k.low[i], k.high[i]) - from) / kSubsteps;
  }
  const double change = clamp((action[6] > 0 ? 0.0 : 1.0) - w.aperture, -k.aperture_rate, k.aperture_rate) / kSubsteps;
  for (int s = 0; s < kSubsteps; ++s) {
    for (int i = 0; i < 3; ++i) { w.position[i] += goal[i]; w.rotation[i] += goal[i + 3]; }
    w.aperture = clamp(w.aperture + change, 0, 1);
    if (w.held >= 0) carry(w);
    else if (change < 0) try_grasp(w);
    fingers_push(w);
    objects_push(w);
    tray_walls(w);
    fall(w, kFallPerSubstep);
  }
}

bool success(const World& w, int family, int object, int goal) {
  const Entity &e = w.entity[object], &g = w.entity[goal];
  if (int(w.held) == object || e.z - support_height(w, object) > kRest) return false;
  const double distance = std::hypot(e.x - g.x, e.y - g.y);
  switch (family) {
    case kPlace: case kPush: return distance < kPadTolerance && e.z < kRest;
    case kStack: return std::abs(e.z - g.z - g.height) < kRest && distance < g.radius && int(w.held) != goal;
    case kPutInto: return inside_tray(g, e) && e.z < kTrayRim;
    default: return false;
  }
}

}  // namespace worldenv::tabletop
