// Software renderer: analytic boxes and cylinders, four rays a pixel, painted onto a table seen by a pinhole camera.
#pragma once
#include <cstdint>
#include <vector>

#include "world.h"

namespace worldenv::tabletop {

struct Vec { float x, y, z; };

class Renderer {
 public:
  // intrinsics row-major [3, 3]; extrinsics row-major [4, 4], world to camera (x right, y down, z forward)
  Renderer(int size, const double* intrinsics, const double* extrinsics);
  int size() const { return size_; }

  struct Canvas {                  // one per thread
    std::vector<float> depth;      // [2 size * 2 size]
    std::vector<uint8_t> color;    // [2 size * 2 size, 3]
  };
  void draw(const World& world, Canvas& canvas, uint8_t* frame) const;  // frame [size, size, 3]

 private:
  struct Rect { int x0, y0, x1, y1; };
  struct Solid { Vec center, half; float axis[9]; bool round; Vec color; };

  Rect bounds(const Vec* corners, int count) const;
  Rect bounds_of(const Solid& solid) const;
  void disc_on_table(Canvas& canvas, float x, float y, float radius, float strength) const;
  void square_on_table(Canvas& canvas, float x, float y, float half, Vec color) const;
  void solid(Canvas& canvas, const Solid& solid) const;
  void entities(Canvas& canvas, const World& world) const;
  void gripper(Canvas& canvas, const World& world) const;

  int size_, samples_;              // samples_ = 2 * size
  Vec eye_;
  float projection_[12];            // row-major [3, 4]
  std::vector<Vec> ray_;            // [samples * samples] direction, depth 1 along the optical axis
  std::vector<float> table_;        // [samples * samples, 2] where the ray meets the table
  std::vector<uint8_t> background_; // [samples * samples, 3]
};

}  // namespace worldenv::tabletop
