// What `compose` does in the cells of a row; worldenv/ops/compose.py says what it means.
// One cell at a time: its numbers lie next to each other, frames and pixels of one choice side by side, so that every
// loop over `lane` is a vector operation. A picture without any share in a cell is not read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "patch.h"
#include "vector.h"

namespace worldenv::cpu {

constexpr int64_t kSub = 4;  // the 2 x 2 pixels of a cell
constexpr int64_t kMaxSources = 64;

struct Sizes {
  int64_t frames, sources;
};

struct Cut {
  float share, correction;
};

// The same four pixels in every frame.
template <int Width>
WORLDENV_INLINE void repeat(Vector<Width>& to, const float* from) {
#if WORLDENV_X86
  if (Width == 16) {
    asm("vbroadcastf32x4 %1, %0" : "=v"(to.v) : "m"(*reinterpret_cast<const float(*)[kSub]>(from)));
    return;
  }
#endif
  double upper, lower;
  __builtin_memcpy(&upper, from, sizeof(upper));
  __builtin_memcpy(&lower, from + 2, sizeof(lower));
  typename Native<Width>::Pairs pairs;
  for (int64_t l = 0; l < Width / 2; ++l) pairs[l] = l % 2 ? lower : upper;
  to.v = (typename Vector<Width>::Floats)pairs;
}

template <int Width>
WORLDENV_INLINE void repeat(Vector<Width>& to, const uint8_t* from) {
#if WORLDENV_X86
  if (Width == 16) {
    typename Native<Width>::Ints four;
    asm("vpbroadcastd %1, %x0\n\tvpmovzxbd %x0, %x0\n\tvshufi32x4 $0, %0, %0, %0"
        : "=v"(four) : "m"(*reinterpret_cast<const uint8_t(*)[kSub]>(from)));
    to.v = __builtin_convertvector(four, typename Vector<Width>::Floats) * (1.0f / 127.5f) - 1.0f;
    return;
  }
#endif
  Native<4>::Bytes bytes;
  __builtin_memcpy(&bytes, from, sizeof(bytes));
  const Native<4>::Floats four = __builtin_convertvector(bytes, Native<4>::Floats) * (1.0f / 127.5f) - 1.0f;
  repeat(to, reinterpret_cast<const float*>(&four));
}

// Nearer to zero by `by`, and zero within; NaN stays NaN.
template <int Width>
WORLDENV_INLINE void shrink(Vector<Width>& x, float by) {
  const auto above = x.v - by, below = x.v + by;
  x.v = above > 0.0f ? above : below < 0.0f ? below : x.v * 0.0f;
}

// The shares of the S pictures in one cell: softmax, cut, scaled to sum 1.
template <int Width>
WORLDENV_INLINE void share_out(
    const float* choice, const float* bias, int64_t sources, int64_t stride, int64_t lanes, float cut,
    Vector<Width>* share
) {
  Vector<Width> highest, total, kept, more;
  highest.fill(-std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < sources; ++j) {
    share[j].load(choice + j * stride, lanes);
    more.load(bias + j * stride, lanes);
    share[j].v += more.v;
    highest.v = highest.v > share[j].v ? highest.v : share[j].v;
  }
  for (int64_t j = 0; j < sources; ++j) {
    share[j].v -= highest.v;
    share[j].exponential();
    total.v += share[j].v;
  }
  total.v = 1.0f / total.v;
  for (int64_t j = 0; j < sources; ++j) {
    share[j].v = share[j].v * total.v - cut;
    share[j].v = share[j].v < 0.0f ? share[j].v * 0.0f : share[j].v;
    kept.v += share[j].v;
  }
  kept.v = 1.0f / kept.v;
  for (int64_t j = 0; j < sources; ++j) share[j].v *= kept.v;
}

// The cells of one row of one episode.
template <int Width, typename Number>
WORLDENV_INLINE void compose_row(
    const float* raw,       // [w, 3 + S, K, 4]
    const float* bias,      // [3 + S, K, 4]
    const Number* pictures,  // [w, S - 1, 12]
    const float* plate,     // [w, 12]
    float* out,             // [w, K, 12]
    int64_t width,
    const Sizes& sizes,
    const Cut& cut
) {
  const int64_t sources = sizes.sources, stride = sizes.frames * kSub;
  Vector<Width> share[kMaxSources], sum[3], pixels, more;
  for (int64_t x = 0; x < width; ++x, raw += (3 + sources) * stride, pictures += (sources - 1) * kPatch,
               plate += kPatch, out += sizes.frames * kPatch)
    for (int64_t first = 0; first < stride; first += Width) {
      const int64_t lanes = std::min<int64_t>(Width, stride - first);
      share_out<Width>(raw + 3 * stride + first, bias + 3 * stride + first, sources, stride, lanes, cut.share, share);
      for (int64_t c = 0; c < 3; ++c) {
        sum[c].load(raw + c * stride + first, lanes);
        more.load(bias + c * stride + first, lanes);
        sum[c].v += more.v;
        shrink(sum[c], cut.correction);
      }
      for (int64_t j = 0; j < sources; ++j) {
        if (share[j].all_zero()) continue;
        for (int64_t c = 0; c < 3; ++c) {
          if (j + 1 < sources) repeat(pixels, pictures + j * kPatch + 4 * c);
          else repeat(pixels, plate + 4 * c);
          sum[c].v += share[j].v * pixels.v;
        }
      }
      for (int64_t l = 0; l < lanes; l += kSub)
        for (int64_t c = 0; c < 3; ++c)
          __builtin_memcpy(out + (first + l) / kSub * kPatch + 4 * c, reinterpret_cast<const float*>(&sum[c].v) + l,
                           4 * sizeof(float));
    }
}

}  // namespace worldenv::cpu
