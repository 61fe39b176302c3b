// One tabletop world: a gripper, up to eight entities and a task. Plain data, so that a state is saved by a copy.
#pragma once
#include <cstdint>

namespace worldenv::tabletop {

constexpr int kMaxEntities = 8;
constexpr int kSubsteps = 4;

enum Kind { kNone = 0, kBlock = 1, kCan = 2, kPuck = 3, kPad = 4, kTray = 5 };
enum Family { kPlace = 0, kPush = 1, kStack = 2, kPutInto = 3 };

struct Entity {
  double kind, color;       // Kind; index into the palette
  double x, y, z, yaw;      // centre of the base, metres and radians
  double radius, height;    // metres; pads and trays: half the side
};

// Every member is a double: the saved state is this struct as a row of float64.
struct World {
  double position[3], rotation[3], aperture;  // metres, axis-angle, 0 closed .. 1 open
  double held;                                // index of the held entity, -1 if none
  double hold_offset[3], hold_yaw;            // held entity relative to the fingertips
  double family, object, goal;                // task
  Entity entity[kMaxEntities];
};

// How one action moves the gripper; the same figures as worldenv.kinematics.
struct Kinematics {
  double translation_step, rotation_step, aperture_rate;
  double low[6], high[6];
};

constexpr double kFingerRadius = 0.007, kFingerLength = 0.05;
constexpr double kFingerClosed = 0.012, kFingerTravel = 0.033;  // half the distance between the fingers
constexpr double kTrayRim = 0.022, kTableX = 0.21, kTableYLow = -0.17, kTableYHigh = 0.23;

inline bool movable(const Entity& e) { return e.kind == kBlock || e.kind == kCan || e.kind == kPuck; }

void rotation_matrix(const double axis_angle[3], double out[9]);
void finger_positions(const World& w, double left[3], double right[3]);
void settle(World& w);                                        // let everything fall to its support
void step(World& w, const Kinematics& k, const float action[7]);
bool success(const World& w, int family, int object, int goal);

}  // namespace worldenv::tabletop
