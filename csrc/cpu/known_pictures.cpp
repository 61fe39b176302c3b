// CPU face of worldenv::known_pictures; worldenv/ops/known_pictures.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "layer.h"
#include "move.h"
#include "packed.h"
#include "patch.h"
#include "vector.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kCamera = 12, kPlace = 3;  // numbers of a camera, of a place

struct Sizes {
  int64_t height, width, chunk, tip;  // tip: numbers of a tip

  int64_t pixels() const { return height * width; }
  int64_t step() const { return (1 + 4 * chunk) * kPatch; }  // bytes from patch to patch
};

struct Episode {
  const uint8_t *first, *last, *clear;  // [H, W, 3]
  const uint8_t* mask;                  // [H, W]
  const uint8_t* hidden;                // [K, H, W]
  const float *tips, *places, *camera;  // [K + 2, tip], [K + 2, 3], [3, 4]
};

struct Room {
  int64_t row;  // numbers of a row
  Numbers picture, rows, thing, layer;
  std::vector<uint8_t> columns, pair, frame, on_last, on_clear;  // the bases of the guesses
  Resampling resampling;

  explicit Room(const Sizes& sizes)
      : row(row_size(sizes.width)), picture(4 * (sizes.height + 3) * sizes.width),
        rows(sizes.height * std::max(row, 4 * sizes.width)), thing(4 * sizes.pixels()), layer(4 * sizes.pixels()),
        columns(sizes.width), pair(2 * row), frame(sizes.pixels() * 3 + 1), on_last(sizes.pixels() * 3 + 1),
        on_clear(sizes.pixels() * 3 + 1),
        resampling{std::vector<Taps>(sizes.width), std::vector<Taps>(sizes.height)} {}
};

// The patches of a frame, each so many times.
template <int Width>
WORLDENV_INLINE void copy(const uint8_t* frame /* [H, W, 3] */, const Sizes& sizes, int64_t copies, uint8_t* to) {
  const int64_t row = 3 * sizes.width;
  for (int64_t y = 0; y < sizes.height; y += 2, frame += 2 * row, to += sizes.width / 2 * sizes.step())
    store_patches<Width>(frame, frame + row, sizes.width, copies, sizes.step(), to);
}

// One frame moved with the fingertips to where they are after each action.
template <int Width>
WORLDENV_INLINE void move_with_tips(const uint8_t* frame, const float* tip, const Episode& episode, const Sizes& sizes,
                                    Room& room, uint8_t* to) {
  std::memcpy(room.frame.data(), frame, sizes.pixels() * 3);
  side_by_side<Width>(room.frame.data(), sizes.height, sizes.width, room.picture.pixels());
  const Point begin = project(tip, episode.camera);
  for (int64_t j = 0; j < sizes.chunk; ++j, to += kPatch) {
    resample(begin, project(episode.tips + (2 + j) * sizes.tip, episode.camera), room.resampling);
    move<Width>(room.picture.pixels(), room.resampling, sizes.step(), room.rows.data(), room.pair.data(), to);
  }
}

// The layer where the thing is at place `j`; 1 is now.
WORLDENV_INLINE Box layer_at(int64_t j, const Box& box, const Episode& episode, Room& room) {
  resample(project(episode.places, episode.camera), project(episode.places + j * kPlace, episode.camera),
           room.resampling);
  return move_layer(room.thing.pixels(), box, room.resampling, room.rows.pixels(), room.layer.pixels());
}

// Takes from another frame where the share of a pixel or of a neighbour is above kThere.
template <typename Share>
WORLDENV_INLINE void take(const Box& box, Share share, const Sizes& sizes, const uint8_t* from, uint8_t* to) {
  for (int64_t y = box.top; y < box.bottom; ++y)
    for (int64_t x = box.left; x < box.right; ++x) {
      if (!(share(y * sizes.width + x) > kThere)) continue;
      const Box near = Box{y, y + 1, x, x + 1}.grown(1, sizes.height, sizes.width);
      for (int64_t row = near.top; row < near.bottom; ++row) {
        const int64_t i = 3 * (row * sizes.width + near.left);
        std::copy_n(from + i, 3 * (near.right - near.left), to + i);
      }
    }
}

// The thing, and the bases that it is laid over.
WORLDENV_INLINE void prepare(const Box& box, const Episode& episode, const uint8_t* plate /* [H, W, 3] */,
                             const Sizes& sizes, Room& room) {
  const Box around = box.grown(3, sizes.height, sizes.width);
  Pixel *thing = room.thing.pixels(), *layer = room.layer.pixels();
  for (int64_t y = around.top; y < around.bottom; ++y)
    for (int64_t x = around.left; x < around.right; ++x) {
      const int64_t i = y * sizes.width + x;
      const uint8_t* rgb = episode.clear + 3 * i;
      thing[i] = Pixel{float(rgb[0]), float(rgb[1]), float(rgb[2]), float(episode.mask[i])};
    }
  take(box, [&](int64_t i) { return episode.mask[i] / 255.0f; }, sizes, plate, room.on_clear.data());
  const Box now = layer_at(1, box, episode, room);
  take(now, [&](int64_t i) { return layer[i][3] / 255; }, sizes, room.on_clear.data(), room.on_last.data());
}

// The layer over a base, in patches.
template <int Width>
WORLDENV_INLINE void lay(const Box& box, const uint8_t* base /* [H, W, 3] */, const uint8_t* hidden /* [H, W] */,
                         const Sizes& sizes, Room& room, uint8_t* to) {
  const Box whole = box.even();
  Vector<4> colour;
  for (int64_t y = whole.top; y < whole.bottom; ++y) {
    for (int64_t x = whole.left; x < whole.right; ++x) {
      const int64_t i = y * sizes.width + x;
      const Pixel over = room.layer.pixels()[i];
      colour.v = to_pixel<Width>(base + 3 * i);
      if (box.has(y, x)) colour.v += over[3] / 255 * (float(255 - hidden[i]) / 255) * (over - colour.v);
      store_rounded<4>(colour, room.pair.data() + y % 2 * room.row + 3 * (x - whole.left));
    }
    if (y % 2)
      store_patches<Width>(room.pair.data(), room.pair.data() + room.row, whole.right - whole.left, 1, sizes.step(),
                           to + (y / 2 * (sizes.width / 2) + whole.left / 2) * sizes.step());
  }
}

template <int Width>
WORLDENV_INLINE void pictures_of(const Episode& episode, const uint8_t* plate, const Sizes& sizes, Room& room,
                                 uint8_t* to) {
  const int64_t bytes = sizes.pixels() * 3, group = sizes.chunk * kPatch;
  uint8_t *with_now = to + kPatch, *guess_last = with_now + 2 * group, *guess_clear = guess_last + group;
  std::memcpy(room.on_last.data(), episode.last, bytes);
  std::memcpy(room.on_clear.data(), episode.clear, bytes);
  copy<Width>(room.on_last.data(), sizes, 1, to);
  move_with_tips<Width>(episode.last, episode.tips + sizes.tip, episode, sizes, room, with_now);
  move_with_tips<Width>(episode.first, episode.tips, episode, sizes, room, with_now + group);
  const Box box = box_of(episode.mask, sizes.height, sizes.width, room.columns);
  if (!box.empty()) prepare(box, episode, plate, sizes, room);
  copy<Width>(room.on_last.data(), sizes, sizes.chunk, guess_last);
  copy<Width>(room.on_clear.data(), sizes, sizes.chunk, guess_clear);
  for (int64_t j = 0; j < sizes.chunk && !box.empty(); ++j, guess_last += kPatch, guess_clear += kPatch) {
    const Box there = layer_at(2 + j, box, episode, room);
    if (there.empty()) continue;
    const uint8_t* hidden = episode.hidden + j * sizes.pixels();
    lay<Width>(there, room.on_last.data(), hidden, sizes, room, guess_last);
    lay<Width>(there, room.on_clear.data(), hidden, sizes, room, guess_clear);
  }
}

using Function = void (*)(const Episode&, const uint8_t*, const Sizes&, Room&, uint8_t*);

void pictures_plain(const Episode& episode, const uint8_t* plate, const Sizes& sizes, Room& room, uint8_t* to) {
  pictures_of<4>(episode, plate, sizes, room, to);
}
#if WORLDENV_X86
WORLDENV_AVX2 void pictures_avx2(const Episode& episode, const uint8_t* plate, const Sizes& sizes, Room& room,
                                 uint8_t* to) {
  pictures_of<8>(episode, plate, sizes, room, to);
}
WORLDENV_AVX512 void pictures_avx512(const Episode& episode, const uint8_t* plate, const Sizes& sizes, Room& room,
                                     uint8_t* to) {
  pictures_of<16>(episode, plate, sizes, room, to);
}
#endif

Function function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return pictures_avx512;
  if (isa() == Isa::kAvx2) return pictures_avx2;
#endif
  return pictures_plain;
}

// The plate as a frame, rounded; NaN is grey.
std::vector<uint8_t> to_frame(const float* plate /* [H / 2, W / 2, 12] */, const Sizes& sizes) {
  std::vector<uint8_t> frame(sizes.pixels() * 3);
  Vector<4> number;
  for (int64_t y = 0; y < sizes.height; ++y)
    for (int64_t x = 0; x < sizes.width; ++x) {
      const float* patch = plate + (y / 2 * (sizes.width / 2) + x / 2) * kPatch + 2 * (y % 2) + x % 2;
      number.v = Pixel{patch[0], patch[4], patch[8], 0.0f};
      number.v = (number.v == number.v ? number.v : Pixel{}) + 1.0f;
      number.store_levels(frame.data() + (y * sizes.width + x) * 3, 3, 127.5f, 0.0f);
    }
  return frame;
}

void check_all(const Tensor& first, const Tensor& last, const Tensor& clear, const Tensor& mask, const Tensor& hidden,
               const Tensor& tips, const Tensor& places, const Tensor& camera, const Tensor& plate) {
  for (const Tensor* frames : {&first, &last, &clear}) {
    check(frames->scalar_type() == ScalarType::Byte && frames->dim() == 4, "frames should be uint8 [B, H, W, 3]");
    for (int64_t i = 0; i < 4; ++i)
      check(frames->size(i) == first.size(i), "last and clear should have the shape of first");
  }
  const int64_t batch = first.size(0), height = first.size(1), width = first.size(2);
  check(first.size(3) == 3 && height % 2 == 0 && width % 2 == 0, "first should be [B, H, W, 3] with H and W even");
  check(mask.scalar_type() == ScalarType::Byte && mask.dim() == 3 && mask.size(0) == batch && mask.size(1) == height &&
            mask.size(2) == width,
        "mask should be uint8 [B, H, W]");
  for (const Tensor* tensor : {&tips, &places, &camera, &plate})
    check(tensor->scalar_type() == ScalarType::Float, "tips, places, camera and plate should be float32");
  check(tips.dim() == 3 && tips.size(0) == batch && tips.size(1) >= 2 && tips.size(2) >= 3,
        "tips should be [B, K + 2, P] with P at least 3");
  check(hidden.scalar_type() == ScalarType::Byte && hidden.dim() == 4 && hidden.size(0) == batch &&
            hidden.size(1) == tips.size(1) - 2 && hidden.size(2) == height && hidden.size(3) == width,
        "hidden should be uint8 [B, K, H, W]");
  check(places.dim() == 3 && places.size(0) == batch && places.size(1) == tips.size(1) && places.size(2) == kPlace,
        "places should be [B, K + 2, 3]");
  check(camera.dim() == 4 && camera.size(0) == batch && camera.size(1) == 1 && camera.size(2) == 3 &&
            camera.size(3) == 4,
        "camera should be [B, 1, 3, 4]");
  check(plate.dim() == 3 && plate.size(0) == height / 2 && plate.size(1) == width / 2 && plate.size(2) == kPatch,
        "plate should be [H / 2, W / 2, 12]");
}

}  // namespace

Tensor known_pictures(
    const Tensor& first_any,   // [B, H, W, 3] uint8, as the next two
    const Tensor& last_any,
    const Tensor& clear_any,
    const Tensor& mask_any,    // [B, H, W] uint8
    const Tensor& hidden_any,  // [B, K, H, W] uint8
    const Tensor& tips_any,    // [B, K + 2, P] float32
    const Tensor& places_any,  // [B, K + 2, 3] float32
    const Tensor& camera_any,  // [B, 1, 3, 4] float32
    const Tensor& plate_any    // [H / 2, W / 2, 12] float32
) {                            // [B, H / 2, W / 2, 1 + 4 K, 12] uint8
  check_all(first_any, last_any, clear_any, mask_any, hidden_any, tips_any, places_any, camera_any, plate_any);
  const Tensor first = torch::stable::contiguous(first_any), last = torch::stable::contiguous(last_any);
  const Tensor clear = torch::stable::contiguous(clear_any), mask = torch::stable::contiguous(mask_any);
  const Tensor hidden = torch::stable::contiguous(hidden_any);
  const Tensor tips = torch::stable::contiguous(tips_any), places = torch::stable::contiguous(places_any);
  const Tensor camera = torch::stable::contiguous(camera_any), plate = torch::stable::contiguous(plate_any);
  const Sizes sizes{first.size(1), first.size(2), tips.size(1) - 2, tips.size(2)};
  const int64_t points = tips.size(1), pixels = sizes.pixels(), batch = pixels ? first.size(0) : 0;
  Tensor out = torch::stable::new_empty(
      first, {first.size(0), sizes.height / 2, sizes.width / 2, sizes.step() / kPatch, kPatch});
  const uint8_t *firsts = first.const_data_ptr<uint8_t>(), *lasts = last.const_data_ptr<uint8_t>();
  const uint8_t *clears = clear.const_data_ptr<uint8_t>(), *masks = mask.const_data_ptr<uint8_t>();
  const uint8_t* hides = hidden.const_data_ptr<uint8_t>();
  const float *tip = tips.const_data_ptr<float>(), *place = places.const_data_ptr<float>();
  const float* cameras = camera.const_data_ptr<float>();
  const std::vector<uint8_t> empty = to_frame(plate.const_data_ptr<float>(), sizes);
  uint8_t* to = out.mutable_data_ptr<uint8_t>();
  const Function pictures = function();
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    Room room(sizes);
    for (int64_t b = begin; b < end; ++b) {
      const Episode episode{firsts + b * pixels * 3,      lasts + b * pixels * 3,
                            clears + b * pixels * 3,      masks + b * pixels,
                            hides + b * sizes.chunk * pixels, tip + b * points * sizes.tip,
                            place + b * points * kPlace,  cameras + b * kCamera};
      pictures(episode, empty.data(), sizes, room, to + b * pixels / 4 * sizes.step());
    }
  });
  return out;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "known_pictures(Tensor first, Tensor last, Tensor clear, Tensor mask, Tensor hidden, Tensor tips, "
      "Tensor places, Tensor camera, Tensor plate) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("known_pictures", TORCH_BOX(&worldenv::cpu::known_pictures)); }
