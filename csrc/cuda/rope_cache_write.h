// Kernel of the op rope_cache_write. A warp takes a token: its angles are computed once for all its heads.
#pragma once

#include <cmath>

#include "ptx.h"

namespace worldenv::cuda {

constexpr float kEps = 1e-6f;          // of the op's meaning, in worldenv/ops/rope_cache_write.py
constexpr float kLeastScale = 1e-12f;  // likewise
constexpr int kTokensPerBlock = 8;

struct RopeCacheWrite {
  const void* qkv;           // [B, M, (H + 2 G) D]
  const float* query_gain;   // [D]
  const float* key_gain;     // [D]
  const int32_t* frame;      // [B]
  const int32_t* place;      // [B]
  const float* time_angle;   // [D / 2]
  const float* space_angle;  // [L, D / 2]
  void* keys;                // [B, G, C, D], an episode is key_stride numbers from the next
  void* values;              // [B, G, C, D]
  float* key_scale;          // [B, G, C] with int8 rings
  float* value_scale;        // [B, G, C]
  void* query;               // [B, M, H, D]
  int64_t key_stride, value_stride, key_scale_stride, value_scale_stride;
  int64_t batch;
  int tokens, query_heads, key_heads, capacity, tokens_per_frame;  // M, H, G, C, L
};

// A head is spread over D / 16 lanes: a lane has eight numbers of its first half and the eight that they turn with.
struct Sixteen {
  float a[8], b[8];
};

template <typename T>
WORLDENV_DEVICE void load8(float (&x)[8], const T* from) {
  const Vec16 packed = *reinterpret_cast<const Vec16*>(from);
#pragma unroll
  for (int i = 0; i < 4; ++i) unpack<T>(packed.word[i], x[2 * i], x[2 * i + 1]);
}

template <>
WORLDENV_DEVICE void load8<float>(float (&x)[8], const float* from) {
  struct alignas(16) Four {
    float x[4];
  };
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Four four = reinterpret_cast<const Four*>(from)[i];
#pragma unroll
    for (int j = 0; j < 4; ++j) x[4 * i + j] = four.x[j];
  }
}

template <typename T>
WORLDENV_DEVICE void store8(T* to, const float (&x)[8]) {
  Vec16 packed;
#pragma unroll
  for (int i = 0; i < 4; ++i) packed.word[i] = pack<T>(x[2 * i], x[2 * i + 1]);
  *reinterpret_cast<Vec16*>(to) = packed;
}

template <>
WORLDENV_DEVICE void store8<float>(float* to, const float (&x)[8]) {
  struct alignas(16) Four {
    float x[4];
  };
#pragma unroll
  for (int i = 0; i < 2; ++i)
    reinterpret_cast<Four*>(to)[i] = Four{{x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]}};
}

template <>
WORLDENV_DEVICE void store8<int8_t>(int8_t* to, const float (&x)[8]) {
  Vec8 packed{{0, 0}};
#pragma unroll
  for (int i = 0; i < 8; ++i)
    packed.word[i / 4] |= (static_cast<uint32_t>(static_cast<int>(rintf(x[i]))) & 0xffu) << (8 * (i % 4));
  *reinterpret_cast<Vec8*>(to) = packed;
}

template <int Lanes>
WORLDENV_DEVICE float sum_over(float x) {
#pragma unroll
  for (int lanes = Lanes / 2; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
  return x;
}

template <int Lanes>
WORLDENV_DEVICE float max_over(float x) {
#pragma unroll
  for (int lanes = Lanes / 2; lanes > 0; lanes /= 2) x = max_nan(x, shuffle_xor(x, lanes));
  return x;
}

template <int D>
WORLDENV_DEVICE void normalise_and_rotate(Sixteen& x, const float* gain, int at, const Sixteen& turn) {
  float square = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) square += x.a[i] * x.a[i] + x.b[i] * x.b[i];
  const float size = rsqrtf(sum_over<D / 16>(square) / D + kEps);
  Sixteen gains;
  load8(gains.a, gain + at);
  load8(gains.b, gain + at + D / 2);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float a = x.a[i] * size * gains.a[i], b = x.b[i] * size * gains.b[i];
    x.a[i] = a * turn.a[i] - b * turn.b[i];
    x.b[i] = b * turn.a[i] + a * turn.b[i];
  }
}

// Writes one head of one token. Every lane of the warp calls it, because the scale is found together.
template <int D, typename Ring>
WORLDENV_DEVICE void write_ring(Ring* ring, float* scale, Sixteen& x, int at, bool present) {
  if constexpr (sizeof(Ring) == 1) {
    float most = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) most = max_nan(most, max_nan(fabsf(x.a[i]), fabsf(x.b[i])));
    const float step = max_nan(max_over<D / 16>(most) / 127, kLeastScale);
#pragma unroll
    for (int i = 0; i < 8; ++i) x.a[i] /= step, x.b[i] /= step;
    if (present && at == 0) *scale = step;
  }
  if (present) {
    store8(ring + at, x.a);
    store8(ring + at + D / 2, x.b);
  }
}

template <typename T, typename Ring, int D>
__global__ void __launch_bounds__(kTokensPerBlock* kWarp) rope_cache_write_kernel(const RopeCacheWrite p) {
  constexpr int kLanes = D / 16, kHeads = kWarp / kLanes;  // heads that a warp takes at once
  const int lane = threadIdx.x % kWarp, at = lane % kLanes * 8;
  const int64_t row = int64_t(blockIdx.x) * kTokensPerBlock + threadIdx.x / kWarp;
  if (row >= p.batch * p.tokens) return;  // the whole warp
  const int64_t b = row / p.tokens;
  const int m = static_cast<int>(row % p.tokens);

  Sixteen turn, space;  // cosine and sine of the eight angles
  load8(turn.a, p.time_angle + at);
  load8(space.a, p.space_angle + int64_t(m % p.tokens_per_frame) * (D / 2) + at);
  const float frame = static_cast<float>(p.frame[b] + m / p.tokens_per_frame);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float angle = multiply(frame, turn.a[i]) + space.a[i];
    sincosf(angle, &turn.b[i], &turn.a[i]);
  }

  const int64_t place = (int64_t(p.place[b]) + m) % p.capacity;
  const int heads = p.query_heads + 2 * p.key_heads;
  const T* from = static_cast<const T*>(p.qkv) + row * heads * D + at;
  for (int first = 0; first < heads; first += kHeads) {
    const int head = first + lane / kLanes;
    const bool present = head < heads;
    Sixteen x{};
    if (present) {
      load8(x.a, from + int64_t(head) * D);
      load8(x.b, from + int64_t(head) * D + D / 2);
    }
    const int key = head - p.query_heads, value = key - p.key_heads;  // the number among its own, or negative
    if (first < p.query_heads + p.key_heads) {                        // the whole warp; a value stays as it is
      Sixteen turned = x;
      normalise_and_rotate<D>(turned, key < 0 ? p.query_gain : p.key_gain, at, turn);
      if (value < 0) x = turned;
    }
    if (present && key < 0) {
      T* to = static_cast<T*>(p.query) + (row * p.query_heads + head) * D + at;
      store8(to, x.a);
      store8(to + D / 2, x.b);
    }
    if (first + kHeads > p.query_heads) {  // the whole warp
      const bool written = present && key >= 0, is_key = value < 0;
      const int64_t line = int64_t(written ? (is_key ? key : value) : 0) * p.capacity + place;
      Ring* ring = static_cast<Ring*>(is_key ? p.keys : p.values) + b * (is_key ? p.key_stride : p.value_stride);
      float* scale = is_key ? p.key_scale + b * p.key_scale_stride : p.value_scale + b * p.value_scale_stride;
      write_ring<D>(ring + line * D, scale + line, x, at, written);
    }
  }
}

}  // namespace worldenv::cuda
