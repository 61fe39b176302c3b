// CPU face of worldenv::transport; worldenv/ops/transport.py says what it means.
// The last frame is laid out as pixels of four floats, one of them idle, a few rows side by side: these rows are
// resampled pixel by pixel, then columns row by row.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "patch.h"
#include "vector.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Pixel = Native<4>::Floats;

constexpr int64_t kCamera = 12;  // numbers of a camera

struct Taps {
  int64_t at[4];
  float weight[4];
};

struct Point {
  float x, y, depth;  // of the fingertips: px, px, m
};

struct Sizes {
  int64_t height, width, pictures, views, row;  // row: numbers of a pose
};

Point project(const float* pose, const float* camera) {  // [3 or more], [3, 4]
  float h[3];
  for (int i = 0; i < 3; ++i) {
    const float* row = camera + 4 * i;
    h[i] = pose[0] * row[0] + pose[1] * row[1] + pose[2] * row[2] + row[3];
  }
  const float depth = h[2] < 1e-3f ? 1e-3f : h[2];
  return {h[0] / depth, h[1] / depth, depth};
}

// Catmull-Rom weights of every output coordinate.
void resampling(float shift, float scale, std::vector<Taps>& taps) {
  const float last = float(taps.size() - 1);
  for (size_t x = 0; x < taps.size(); ++x) {
    const float centre = shift + scale * (float(x) + 0.5f) - 0.5f, first = std::floor(centre), t = centre - first;
    const float weight[4] = {((2 - t) * t - 1) * t, (3 * t - 5) * t * t + 2, ((4 - 3 * t) * t + 1) * t,
                             (t - 1) * t * t};
    for (int n = 0; n < 4; ++n) {
      taps[x].at[n] = int64_t(std::fmin(std::fmax(first + float(n - 1), 0.0f), last));  // NaN: 0
      taps[x].weight[n] = weight[n] / 2;
    }
  }
}

// Four pixels of a patch, RGB and an idle number each, to its twelve numbers.
WORLDENV_INLINE void store_patch(const Pixel& a, const Pixel& b, const Pixel& c, const Pixel& d, float* to) {
  const Pixel upper = __builtin_shufflevector(a, b, 0, 4, 1, 5), lower = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Pixel blue_upper = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Pixel blue_lower = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Pixel out[3] = {__builtin_shufflevector(upper, lower, 0, 1, 4, 5),
                        __builtin_shufflevector(upper, lower, 2, 3, 6, 7),
                        __builtin_shufflevector(blue_upper, blue_lower, 0, 1, 4, 5)};
  __builtin_memcpy(to, out, sizeof(out));
}

// Two rows of pixels to their patches, `step` numbers apart.
template <int Width>
WORLDENV_INLINE void store_patches(Pixel* pair, int64_t width, int64_t step, float* to) {
  for (int64_t x = 0; x < width; x += 2, to += step)
    store_patch(pair[x], pair[x + 1], pair[width + x], pair[width + x + 1], to);
}

// The same, rounded to pixels; NaN is grey. The bytes lie where the numbers lay.
template <int Width>
WORLDENV_INLINE void store_patches(Pixel* pair, int64_t width, int64_t step, uint8_t* to) {
  const float* numbers = reinterpret_cast<const float*>(pair);
  uint8_t* bytes = reinterpret_cast<uint8_t*>(pair);
  Vector<Width> value;
  for (int64_t i = 0; i < 8 * width; i += Width) {
    value.load(numbers + i, 8 * width - i);
    value.v = (value.v == value.v ? value.v : typename Vector<Width>::Floats{}) + 1.0f;
    value.store_levels(bytes + i, 8 * width - i, 127.5f, 0.0f);
  }
  const uint8_t* lower = bytes + 4 * width;
  for (int64_t x = 0; x < width; x += 2, bytes += 8, lower += 8, to += step) {
#if WORLDENV_X86
    if (Width >= 8) {
      const Native<16>::Bytes order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 0, 0, 0, 0};
      Native<16>::Bytes four;
      asm("vmovq %1, %0\n\tvpinsrq $1, %2, %0, %0\n\tvpshufb %3, %0, %0"
          : "=&x"(four)
          : "m"(*reinterpret_cast<const uint8_t(*)[8]>(bytes)), "m"(*reinterpret_cast<const uint8_t(*)[8]>(lower)),
            "x"(order));
      __builtin_memcpy(to, &four, kPatch);
      continue;
    }
#endif
    for (int64_t c = 0; c < 3; ++c)
      to[4 * c] = bytes[c], to[4 * c + 1] = bytes[c + 4], to[4 * c + 2] = lower[c], to[4 * c + 3] = lower[c + 4];
  }
}

template <int Width, typename Number>
WORLDENV_INLINE void move(
    const Pixel* last,                // [H / kRows, W, kRows]
    const std::vector<Taps>& across,  // [W]
    const std::vector<Taps>& down,    // [H]
    const Sizes& sizes,
    Pixel* room,                      // [H + 2, W]
    Number* to                        // [H / 2, W / 2, pictures, 12], at this picture
) {
  const int64_t width = sizes.width, row = 4 * width;
  constexpr int64_t kRows = Width / 4;
  Vector<Width> sum, tap;
  for (int64_t y = 0; y < sizes.height; y += kRows, last += kRows * width)
    for (int64_t x = 0; x < width; ++x) {
      sum.fill(0.0f);
      for (int n = 0; n < 4; ++n) {
        tap.load(reinterpret_cast<const float*>(last + across[x].at[n] * kRows));
        sum.v += across[x].weight[n] * tap.v;
      }
      Pixel pixels[kRows];
      sum.store(reinterpret_cast<float*>(pixels));
      for (int64_t i = 0; i < kRows && y + i < sizes.height; ++i) room[(y + i) * width + x] = pixels[i];
    }
  const float* rows = reinterpret_cast<const float*>(room);
  Pixel* pair = room + sizes.height * width;
  for (int64_t y = 0; y < sizes.height; y += 2) {
    for (int64_t below = 0; below < 2; ++below)
      for (int64_t i = 0; i < row; i += Width) {
        const Taps& taps = down[y + below];
        sum.fill(0.0f);
        for (int n = 0; n < 4; ++n) {
          tap.load(rows + taps.at[n] * row + i, row - i);
          sum.v += taps.weight[n] * tap.v;
        }
        sum.store(reinterpret_cast<float*>(pair + below * width) + i, row - i);
      }
    store_patches<Width>(pair, width, sizes.pictures * kPatch, to);
    to += width / 2 * sizes.pictures * kPatch;
  }
}

template <typename Number>
using Function =
    void (*)(const Pixel*, const std::vector<Taps>&, const std::vector<Taps>&, const Sizes&, Pixel*, Number*);

template <typename Number>
void move_plain(const Pixel* last, const std::vector<Taps>& across, const std::vector<Taps>& down, const Sizes& sizes,
                Pixel* room, Number* to) {
  move<4>(last, across, down, sizes, room, to);
}
#if WORLDENV_X86
template <typename Number>
WORLDENV_AVX2 void move_avx2(const Pixel* last, const std::vector<Taps>& across, const std::vector<Taps>& down,
                             const Sizes& sizes, Pixel* room, Number* to) {
  move<8>(last, across, down, sizes, room, to);
}
template <typename Number>
WORLDENV_AVX512 void move_avx512(const Pixel* last, const std::vector<Taps>& across, const std::vector<Taps>& down,
                                 const Sizes& sizes, Pixel* room, Number* to) {
  move<16>(last, across, down, sizes, room, to);
}
#endif

// How many rows lie side by side, so that a vector takes the same step in each.
int64_t rows_together() { return isa() == Isa::kAvx512 ? 4 : isa() == Isa::kAvx2 ? 2 : 1; }

template <typename Number>
Function<Number> function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return move_avx512<Number>;
  if (isa() == Isa::kAvx2) return move_avx2<Number>;
#endif
  return move_plain<Number>;
}

// One view of an episode.
template <typename Number>
void fill(
    const Number* frames,  // [M, V, H, W, 3], at this view
    const float* poses,    // [K + 1, row]
    const float* camera,   // [3, 4]
    int64_t memory,
    int64_t poses_count,
    const Sizes& sizes,
    Number* to             // [H / 2, W / 2, pictures, 12]
) {
  const int64_t pixels = sizes.height * sizes.width, frame = sizes.views * pixels * 3;
  for (int64_t m = 0; m < memory; ++m)
    to_patches(frames + m * frame, sizes.height, sizes.width, sizes.pictures, to + m * kPatch);
  const int64_t together = rows_together(), groups = (sizes.height + together - 1) / together;
  std::vector<Pixel> last(groups * together * sizes.width), room(pixels + 2 * sizes.width);
  const Number* from = frames + (memory - 1) * frame;
  for (int64_t y = 0; y < sizes.height; ++y)
    for (int64_t x = 0; x < sizes.width; ++x, from += 3)
      last[(y / together * sizes.width + x) * together + y % together] =
          Pixel{to_unit(from[0]), to_unit(from[1]), to_unit(from[2]), 0.0f};
  std::vector<Taps> across(sizes.width), down(sizes.height);
  const Function<Number> move_one = function<Number>();
  to += memory * kPatch;
  for (int64_t i = 0; i < poses_count; ++i)
    for (int64_t j = i + 1; j < poses_count; ++j, to += kPatch) {
      const Point a = project(poses + sizes.row * i, camera), b = project(poses + sizes.row * j, camera);
      const float scale = b.depth / a.depth;
      resampling(a.x - b.x * scale, scale, across);
      resampling(a.y - b.y * scale, scale, down);
      move_one(last.data(), across, down, sizes, room.data(), to);
    }
}

template <typename Number>
void fill_all(const Tensor& frames, const Tensor& poses, const Tensor& camera, const Sizes& sizes, Tensor& out) {
  const int64_t memory = frames.size(1), count = poses.size(1), size = sizes.height * sizes.width * 3;
  const int64_t views = sizes.views;
  const Number* from = frames.const_data_ptr<Number>();
  const float *pose = poses.const_data_ptr<float>(), *cameras = camera.const_data_ptr<float>();
  Number* to = out.mutable_data_ptr<Number>();
  torch::stable::parallel_for(0, size ? frames.size(0) * views : 0, 1, [&](int64_t begin, int64_t end) {
    for (int64_t bv = begin; bv < end; ++bv) {
      const int64_t b = bv / views, v = bv % views;
      fill(from + (b * memory * views + v) * size, pose + b * count * sizes.row, cameras + bv * kCamera, memory, count,
           sizes, to + bv * sizes.pictures * size);
    }
  });
}

}  // namespace

Tensor transport(
    const Tensor& frames_any,  // [B, M, V, H, W, 3] uint8 or float32
    const Tensor& poses_any,   // [B, K + 1, P] float32
    const Tensor& camera_any   // [B, V, 3, 4] float32
) {                            // [B, V, H / 2, W / 2, M + K (K + 1) / 2, 12] as frames
  const Tensor frames = torch::stable::contiguous(frames_any), poses = torch::stable::contiguous(poses_any);
  const Tensor camera = torch::stable::contiguous(camera_any);
  const bool bytes = frames.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(bytes || frames.scalar_type() == ScalarType::Float, "frames should be uint8 or float32");
  STD_TORCH_CHECK(frames.dim() == 6 && frames.size(1) > 0 && frames.size(2) > 0 && frames.size(5) == 3 &&
                      frames.size(3) % 2 == 0 && frames.size(4) % 2 == 0,
                  "frames should be [B, M, V, H, W, 3] with H and W even");
  STD_TORCH_CHECK(poses.scalar_type() == ScalarType::Float && poses.dim() == 3 && poses.size(0) == frames.size(0) &&
                      poses.size(1) > 0 && poses.size(2) >= 3,
                  "poses should be float32 [B, K + 1, P] with P at least 3");
  STD_TORCH_CHECK(camera.scalar_type() == ScalarType::Float && camera.dim() == 4 && camera.size(0) == frames.size(0) &&
                      camera.size(1) == frames.size(2) && camera.size(2) == 3 && camera.size(3) == 4,
                  "camera should be float32 [B, V, 3, 4]");
  const int64_t batch = frames.size(0), memory = frames.size(1), count = poses.size(1);
  const Sizes sizes{frames.size(3), frames.size(4), memory + count * (count - 1) / 2, frames.size(2), poses.size(2)};
  Tensor out = torch::stable::new_empty(
      frames, {batch, sizes.views, sizes.height / 2, sizes.width / 2, sizes.pictures, kPatch});
  if (bytes) fill_all<uint8_t>(frames, poses, camera, sizes, out);
  else fill_all<float>(frames, poses, camera, sizes, out);
  return out;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def("transport(Tensor frames, Tensor poses, Tensor camera) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("transport", TORCH_BOX(&worldenv::cpu::transport)); }
