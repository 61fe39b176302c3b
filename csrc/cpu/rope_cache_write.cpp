// CPU face of worldenv::rope_cache_write; worldenv/ops/rope_cache_write.py says what it means.
// A token at a time: its cosines and sines once for all heads, and every head while it is in the cache.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "stored.h"
#include "vector.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr float kEps = 1e-6f;
constexpr float kLeastScale = 1e-12f;
constexpr int64_t kGrain = 1 << 14;  // numbers; a thread is not worth waking for less

// A layer of the rings, of all episodes.
struct Ring {
  char *keys, *values;             // [B, G, C, D], the batch strided
  float *key_scale, *value_scale;  // [B, G, C], or null
  int64_t key_stride, value_stride, key_scale_stride, value_scale_stride;
  int64_t groups, places;
};

struct Write {
  const char* qkv;                                                    // [B, M, (H + 2 G) D]
  const float *query_gain, *key_gain, *time_angle, *space_angle;      // [D], [D], [D / 2], [L, D / 2]
  const int32_t *frame, *place;                                       // [B]
  char* query;                                                        // [B, M, H, D]
  Ring ring;
  int64_t tokens, heads, width, per_frame;
};

// to <- rotate(x * rsqrt(mean(x^2) + eps) * gain)
template <int Width, class T>
WORLDENV_INLINE void turn_head(
    const T* x, const float* gain, const float* cosine, const float* sine, int64_t width, float* to
) {
  Vector<Width> a, b, square, one, c, s;
  for (int64_t i = 0; i < width; i += Width) {
    a.load(x + i, width - i);
    square.v += a.v * a.v;
  }
  const float inverse = 1.0f / std::sqrt(square.add_up() / float(width) + kEps);
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; i += Width) {
    const int64_t lanes = half - i;
    a.load(x + i, lanes);
    one.load(gain + i, lanes);
    a.v *= inverse * one.v;
    b.load(x + half + i, lanes);
    one.load(gain + half + i, lanes);
    b.v *= inverse * one.v;
    c.load(cosine + i, lanes);
    s.load(sine + i, lanes);
    one.v = a.v * c.v - b.v * s.v;
    one.store(to + i, lanes);
    one.v = b.v * c.v + a.v * s.v;
    one.store(to + half + i, lanes);
  }
}

template <int Width, class T>
WORLDENV_INLINE void round_to(const float* from, int64_t width, T* to) {
  Vector<Width> x;
  for (int64_t i = 0; i < width; i += Width) {
    x.load(from + i, width - i);
    x.store(to + i, width - i);
  }
}

// Levels of max |x| / 127, which it returns; what is not finite makes it NaN, so that it is not lost.
template <int Width>
WORLDENV_INLINE float round_to_levels(const float* from, int64_t width, int8_t* to) {
  Vector<Width> x, most, broken;
  for (int64_t i = 0; i < width; i += Width) {
    x.load(from + i, width - i);
    broken.v += x.v - x.v;
    x.v = x.v < 0.0f ? -x.v : x.v;
    most.v = x.v > most.v ? x.v : most.v;
  }
  const float step = std::max(most.greatest() / 127.0f, kLeastScale), inverse = 1.0f / step;
  for (int64_t i = 0; i < width; i += Width) {
    x.load(from + i, width - i);
    x.v *= inverse;
    x.store_whole(to + i, width - i);
  }
  return step + broken.add_up();
}

// A head's numbers go to a place of a ring.
template <int Width, class T>
WORLDENV_INLINE void put(const float* from, int64_t width, char* ring, float* scale, int64_t row) {
  if (scale) scale[row] = round_to_levels<Width>(from, width, reinterpret_cast<int8_t*>(ring) + row * width);
  else round_to<Width>(from, width, reinterpret_cast<T*>(ring) + row * width);
}

template <int Width, class T>
WORLDENV_INLINE void write_token(const Write& w, int64_t b, int64_t m, float* room) {
  const int64_t d = w.width, half = d / 2, g = w.ring.groups, item = w.ring.key_scale ? 1 : sizeof(T);
  float *cosine = room, *sine = room + half, *head = room + 2 * half;
  const float frame = float(w.frame[b] + m / w.per_frame), *space = w.space_angle + m % w.per_frame * half;
  for (int64_t i = 0; i < half; i += Width) {
    Vector<Width> rate, angle, c, s;
    rate.load(w.time_angle + i, half - i);
    angle.load(space + i, half - i);
    angle.v += frame * rate.v;
    angle.angle(c, s);
    c.store(cosine + i, half - i);
    s.store(sine + i, half - i);
  }
  const T* from = reinterpret_cast<const T*>(w.qkv) + (b * w.tokens + m) * (w.heads + 2 * g) * d;
  T* query = reinterpret_cast<T*>(w.query) + (b * w.tokens + m) * w.heads * d;
  for (int64_t h = 0; h < w.heads; ++h, from += d, query += d) {
    turn_head<Width>(from, w.query_gain, cosine, sine, d, head);
    round_to<Width>(head, d, query);
  }
  const Ring& ring = w.ring;
  char *keys = ring.keys + b * ring.key_stride * item, *values = ring.values + b * ring.value_stride * item;
  float* key_scale = ring.key_scale ? ring.key_scale + b * ring.key_scale_stride : nullptr;
  float* value_scale = ring.value_scale ? ring.value_scale + b * ring.value_scale_stride : nullptr;
  const int64_t at = (w.place[b] + m) % ring.places;
  for (int64_t i = 0; i < g; ++i) {
    turn_head<Width>(from + i * d, w.key_gain, cosine, sine, d, head);
    put<Width, T>(head, d, keys, key_scale, i * ring.places + at);
    Vector<Width> x;
    for (int64_t c = 0; c < d; c += Width) {
      x.load(from + (g + i) * d + c, d - c);
      x.store(head + c, d - c);
    }
    put<Width, T>(head, d, values, value_scale, i * ring.places + at);
  }
}

// Tokens begin .. end - 1, counted over the batch.
template <int Width, class T>
WORLDENV_INLINE void write(const Write& w, int64_t begin, int64_t end) {
  std::vector<float> room(2 * w.width);
  for (int64_t i = begin; i < end; ++i) write_token<Width, T>(w, i / w.tokens, i % w.tokens, room.data());
}

using Function = void (*)(const Write&, int64_t, int64_t);

template <class T>
void write_plain(const Write& w, int64_t begin, int64_t end) { write<4, T>(w, begin, end); }
#if WORLDENV_X86
template <class T>
WORLDENV_AVX2 void write_avx2(const Write& w, int64_t begin, int64_t end) { write<8, T>(w, begin, end); }
template <class T>
WORLDENV_AVX512 void write_avx512(const Write& w, int64_t begin, int64_t end) { write<16, T>(w, begin, end); }
#endif

template <class T>
Function function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return write_avx512<T>;
  if (isa() == Isa::kAvx2) return write_avx2<T>;
#endif
  return write_plain<T>;
}

Function function(Stored stored) {
  if (stored == Stored::kBFloat16) return function<BFloat16>();
  if (stored == Stored::kFloat16) return function<Float16>();
  return function<float>();
}

void check(const Tensor& tensor, ScalarType dtype, std::initializer_list<int64_t> shape, const char* message) {
  bool same = tensor.scalar_type() == dtype && tensor.dim() == int64_t(shape.size());
  int64_t dim = 0;
  for (int64_t size : shape) same = same && tensor.size(dim++) == size;
  STD_TORCH_CHECK(same, message);
}

// Whether all but the first dimension is contiguous.
bool whole(const Tensor& tensor) {
  int64_t stride = 1;
  for (int64_t dim = tensor.dim() - 1; dim > 0; stride *= tensor.size(dim--))
    if (tensor.stride(dim) != stride) return false;
  return true;
}

Ring ring_of(
    const Tensor& keys, const Tensor& values, const std::optional<Tensor>& key_scale,
    const std::optional<Tensor>& value_scale, ScalarType near
) {
  const bool levels = keys.scalar_type() == ScalarType::Char;
  STD_TORCH_CHECK(levels == key_scale.has_value() && levels == value_scale.has_value(),
                  "key_scale and value_scale are given with int8 keys and values, and only then");
  const int64_t b = keys.size(0), g = keys.size(1), c = keys.size(2), d = keys.size(3);
  const ScalarType dtype = levels ? ScalarType::Char : near;
  for (const Tensor* ring : {&keys, &values})
    check(*ring, dtype, {b, g, c, d}, "keys and values should be [B, G, C, D], of the dtype of qkv or int8");
  if (levels)
    for (const Tensor* scale : {&*key_scale, &*value_scale})
      check(*scale, ScalarType::Float, {b, g, c}, "key_scale and value_scale should be float32 [B, G, C]");
  bool all_whole = whole(keys) && whole(values);
  if (levels) all_whole = all_whole && whole(*key_scale) && whole(*value_scale);
  STD_TORCH_CHECK(!keys.numel() || all_whole, "the rings of an episode should be contiguous");
  return {static_cast<char*>(keys.mutable_data_ptr()), static_cast<char*>(values.mutable_data_ptr()),
          levels ? key_scale->mutable_data_ptr<float>() : nullptr,
          levels ? value_scale->mutable_data_ptr<float>() : nullptr, keys.stride(0), values.stride(0),
          levels ? key_scale->stride(0) : 0, levels ? value_scale->stride(0) : 0, g, c};
}

}  // namespace

Tensor rope_cache_write(
    const Tensor& qkv_any,                   // [B, M, (H + 2 G) D] float32, bfloat16, float16
    const Tensor& query_gain_any,            // [D] float32
    const Tensor& key_gain_any,              // [D] float32
    const Tensor& frame_any,                 // [B] int32
    const Tensor& place_any,                 // [B] int32
    const Tensor& time_angle_any,            // [D / 2] float32
    const Tensor& space_angle_any,           // [L, D / 2] float32
    const Tensor& keys,                      // [B, G, C, D] as qkv, or int8; written
    const Tensor& values,                    // [B, G, C, D]
    const std::optional<Tensor>& key_scale,  // [B, G, C] float32, with int8
    const std::optional<Tensor>& value_scale
) {                                          // [B, M, H, D]
  STD_TORCH_CHECK(qkv_any.dim() == 3 && keys.dim() == 4 && space_angle_any.dim() == 2,
                  "qkv should be [B, M, (H + 2 G) D], keys [B, G, C, D] and space_angle [L, D / 2]");
  const int64_t batch = qkv_any.size(0), tokens = qkv_any.size(1), groups = keys.size(1), width = keys.size(3);
  const int64_t per_frame = space_angle_any.size(0), heads = width ? qkv_any.size(2) / width - 2 * groups : 0;
  STD_TORCH_CHECK(heads > 0 && width % 2 == 0 && qkv_any.size(2) == (heads + 2 * groups) * width &&
                      keys.size(0) == batch, "qkv should be [B, M, (H + 2 G) D] with an even D");
  STD_TORCH_CHECK(per_frame && tokens % per_frame == 0 && tokens <= keys.size(2), "M should be a multiple of L, <= C");
  check(query_gain_any, ScalarType::Float, {width}, "query_gain should be float32 [D]");
  check(key_gain_any, ScalarType::Float, {width}, "key_gain should be float32 [D]");
  check(time_angle_any, ScalarType::Float, {width / 2}, "time_angle should be float32 [D / 2]");
  check(space_angle_any, ScalarType::Float, {per_frame, width / 2}, "space_angle should be float32 [L, D / 2]");
  check(frame_any, ScalarType::Int, {batch}, "frame should be int32 [B]");
  check(place_any, ScalarType::Int, {batch}, "place should be int32 [B]");
  const Ring ring = ring_of(keys, values, key_scale, value_scale, qkv_any.scalar_type());
  const Function some_tokens = function(stored(qkv_any));
  const auto dense = [](const Tensor& tensor) { return torch::stable::contiguous(tensor); };
  const Tensor qkv = dense(qkv_any), query_gain = dense(query_gain_any), key_gain = dense(key_gain_any);
  const Tensor time_angle = dense(time_angle_any), space_angle = dense(space_angle_any);
  const Tensor frame = dense(frame_any), place = dense(place_any);
  for (int64_t b = 0; b < batch; ++b)
    STD_TORCH_CHECK(place.const_data_ptr<int32_t>()[b] >= 0, "place should not be negative");
  Tensor query = torch::stable::new_empty(qkv, {batch, tokens, heads, width});
  const Write write{static_cast<const char*>(qkv.data_ptr()), query_gain.const_data_ptr<float>(),
                    key_gain.const_data_ptr<float>(), time_angle.const_data_ptr<float>(),
                    space_angle.const_data_ptr<float>(), frame.const_data_ptr<int32_t>(),
                    place.const_data_ptr<int32_t>(), static_cast<char*>(query.mutable_data_ptr()), ring, tokens, heads,
                    width, per_frame};
  const int64_t grain = std::max<int64_t>(1, kGrain / ((heads + 2 * groups) * width));
  torch::stable::parallel_for(0, batch * tokens, grain, [&](int64_t begin, int64_t end) {
    some_tokens(write, begin, end);
  });
  return query;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "rope_cache_write(Tensor qkv, Tensor query_gain, Tensor key_gain, Tensor frame, Tensor place, Tensor time_angle, "
      "Tensor space_angle, Tensor(a!) keys, Tensor(b!) values, Tensor(c!)? key_scale=None, Tensor(d!)? "
      "value_scale=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) {
  m.impl("rope_cache_write", TORCH_BOX(&worldenv::cpu::rope_cache_write));
}
