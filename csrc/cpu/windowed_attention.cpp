// CPU face of worldenv::windowed_attention; worldenv/ops/windowed_attention.py says what it means.
// A lane is a query: a panel of them, of all the heads that share a key head, is held transposed. Keys and values are
// then read as they lie in the ring, each number multiplied with the whole panel, and the maxima and sums of the
// running softmax are registers. Numbers of 8 or 16 bits become floats once for a tile of the ring and a few panels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "product.h"
#include "stored.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTile = 64;   // keys
constexpr int64_t kPanels = 4;  // of queries, to which a tile that was converted is shown

// Some queries of an episode that share a key head. Query i is head `i mod heads` of token `i / heads`.
struct Task {
  const char *query, *keys, *values;  // [tokens, heads_all, D] from the first of the sharing heads; [C, D]
  const float *key_scale, *value_scale;  // [C], or null
  char* out;                             // as query
  Stored queries, ring;                  // what the numbers are
  int64_t first, last;                   // queries
  int64_t heads, heads_all, length, width;

  int64_t at(int64_t i) const { return (i / heads * heads_all + i % heads) * width; }
};

// Room for one task.
struct Scratch {
  std::vector<float> room;
  float *keys, *values, *score, *query, *out, *state;

  Scratch(int64_t width, int64_t lanes)
      : room(2 * kTile * width + kTile * lanes + kPanels * (2 * width + 2) * lanes + 16) {
    float* next = room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64) % 64 / sizeof(float);
    const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
    score = take(kTile * lanes), query = take(kPanels * width * lanes), out = take(kPanels * width * lanes);
    state = take(kPanels * 2 * lanes), keys = take(kTile * width), values = take(kTile * width);
  }
};

// [lanes, width] of numbers in memory <-> [width, lanes] of floats, for the queries from `first` on.
template <int Width, class T>
WORLDENV_INLINE void transpose_in(const Task& t, int64_t first, float scale, float* panel) {
  constexpr int64_t kLanes = Block<Width>::kLanes;
  const T* query = reinterpret_cast<const T*>(t.query);
  for (int64_t lane = 0; lane < kLanes; lane += Width)
    for (int64_t d = 0; d < t.width; d += Width) {
      Vector<Width> rows[Width];
      for (int64_t i = 0; i < Width; ++i)
        rows[i].load(query + t.at(std::min(first + lane + i, t.last - 1)) + d, t.width - d);
      transpose<Width>(rows);
      for (int64_t i = 0; i < std::min<int64_t>(Width, t.width - d); ++i) {
        rows[i].v *= scale;
        rows[i].store(panel + (d + i) * kLanes + lane);
      }
    }
}

template <int Width, class T>
WORLDENV_INLINE void transpose_out(const Task& t, int64_t first, const float* sums, const float* panel) {
  constexpr int64_t kLanes = Block<Width>::kLanes;
  T* out = reinterpret_cast<T*>(t.out);
  for (int64_t lane = 0; lane < kLanes && first + lane < t.last; lane += Width) {
    Vector<Width> total;
    total.load(sums + lane);
    for (int64_t d = 0; d < t.width; d += Width) {
      Vector<Width> rows[Width];
      for (int64_t i = 0; i < std::min<int64_t>(Width, t.width - d); ++i) {
        rows[i].load(panel + (d + i) * kLanes + lane);
        rows[i].v /= total.v;
      }
      transpose<Width>(rows);
      for (int64_t i = 0; i < std::min<int64_t>(Width, t.last - first - lane); ++i)
        rows[i].store(out + t.at(first + lane + i) + d, t.width - d);
    }
  }
}

// Rows of the ring as floats, each times its scale.
template <int Width, class T>
WORLDENV_INLINE const float* to_floats(const char* from, const float* scale, int64_t rows, int64_t width, float* to) {
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t d = 0; d < width; d += Width) {
      Vector<Width> value;
      value.load(reinterpret_cast<const T*>(from) + n * width + d, width - d);
      if (scale) value.v *= scale[n];
      value.store(to + n * width + d, width - d);
    }
  return to;
}

template <int Width>
WORLDENV_INLINE const float* rows_of(
    const Task& t, const char* ring, const float* scale, int64_t first, int64_t rows, float* to
) {
  const char* from = ring + first * t.width * size_of(t.ring);
  scale = scale ? scale + first : nullptr;
  switch (t.ring) {
    case Stored::kInt8: return to_floats<Width, int8_t>(from, scale, rows, t.width, to);
    case Stored::kBFloat16: return to_floats<Width, BFloat16>(from, scale, rows, t.width, to);
    case Stored::kFloat16: return to_floats<Width, Float16>(from, scale, rows, t.width, to);
    default: return reinterpret_cast<const float*>(from);
  }
}

// score <- keys . queries for some keys; highest <- the greatest of each query.
template <int Width, int Rows>
WORLDENV_INLINE void compare(
    const float* keys, int64_t width, const float* query, float* score, Vector<Width> (&highest)[Block<Width>::kVectors]
) {
  Vector<Width> sum[Rows][Block<Width>::kVectors];
  product<Width, Rows>(keys, width, 1, query, width, sum);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Block<Width>::kVectors; ++v) {
      highest[v].v = sum[r][v].v > highest[v].v ? sum[r][v].v : highest[v].v;
      sum[r][v].store(score + (r * Block<Width>::kVectors + v) * Width);
    }
}

// out <- out * fade + values . weights for some of their D places.
template <int Width, int Rows>
WORLDENV_INLINE void collect(
    const float* values, int64_t width, const float* weights, int64_t count,
    const Vector<Width> (&fade)[Block<Width>::kVectors], float* out
) {
  constexpr int V = Block<Width>::kVectors;
  Vector<Width> sum[Rows][V];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      sum[r][v].load(out + (r * V + v) * Width);
      sum[r][v].v *= fade[v].v;
    }
  product<Width, Rows>(values, 1, width, weights, count, sum);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v].store(out + (r * V + v) * Width);
}

// A panel of queries meets a tile of `count` keys. state: the greatest scores so far and the sums of the weights.
template <int Width>
WORLDENV_INLINE void meet(
    const float* keys, const float* values, int64_t count, int64_t width, const float* query, float* score,
    float* state, float* out
) {
  constexpr int V = Block<Width>::kVectors, R = Block<Width>::kRows;
  constexpr int64_t kLanes = Block<Width>::kLanes;
  Vector<Width> before, highest[V], fade[V], total[V];
  for (int v = 0; v < V; ++v) highest[v].load(state + v * Width);
  int64_t n = 0;
  for (; n + R <= count; n += R) compare<Width, R>(keys + n * width, width, query, score + n * kLanes, highest);
  for (; n < count; ++n) compare<Width, 1>(keys + n * width, width, query, score + n * kLanes, highest);
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    before.load(state + v * Width);
    highest[v].store(state + v * Width);
    fade[v].v = before.v - highest[v].v;
    fade[v].power_of_two();
    total[v].load(state + kLanes + v * Width);
    total[v].v *= fade[v].v;
  }
  for (n = 0; n < count; ++n)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      Vector<Width> weight;
      weight.load(score + n * kLanes + v * Width);
      weight.v -= highest[v].v;
      weight.power_of_two();
      total[v].v += weight.v;
      weight.store(score + n * kLanes + v * Width);
    }
  for (int v = 0; v < V; ++v) total[v].store(state + kLanes + v * Width);
  int64_t d = 0;
  for (; d + R <= width; d += R) collect<Width, R>(values + d, width, score, count, fade, out + d * kLanes);
  for (; d < width; ++d) collect<Width, 1>(values + d, width, score, count, fade, out + d * kLanes);
}

template <int Width>
WORLDENV_INLINE void attend(const Task& t, Scratch& s) {
  constexpr int64_t kLanes = Block<Width>::kLanes;
  const int64_t panels = (t.last - t.first + kLanes - 1) / kLanes, size = t.width * kLanes;
  const float scale = 1.44269504f / std::sqrt(float(t.width));  // weights are powers of two
  std::fill(s.out, s.out + panels * size, 0.0f);
  for (int64_t p = 0; p < panels; ++p) {
    float *state = s.state + p * 2 * kLanes, *query = s.query + p * size;
    std::fill(state, state + kLanes, std::numeric_limits<float>::lowest());
    std::fill(state + kLanes, state + 2 * kLanes, t.length ? 0.0f : 1.0f);  // zeros, where there is no key
    const int64_t first = t.first + p * kLanes;
    if (t.queries == Stored::kFloat32) transpose_in<Width, float>(t, first, scale, query);
    else if (t.queries == Stored::kBFloat16) transpose_in<Width, BFloat16>(t, first, scale, query);
    else transpose_in<Width, Float16>(t, first, scale, query);
  }
  for (int64_t n = 0; n < t.length; n += kTile) {
    const int64_t count = std::min(kTile, t.length - n);
    const float* keys = rows_of<Width>(t, t.keys, t.key_scale, n, count, s.keys);
    const float* values = rows_of<Width>(t, t.values, t.value_scale, n, count, s.values);
    for (int64_t p = 0; p < panels; ++p) {
      float* state = s.state + p * 2 * kLanes;
      meet<Width>(keys, values, count, t.width, s.query + p * size, s.score, state, s.out + p * size);
    }
  }
  for (int64_t p = 0; p < panels; ++p) {
    const float *sums = s.state + (2 * p + 1) * kLanes, *out = s.out + p * size;
    const int64_t first = t.first + p * kLanes;
    if (t.queries == Stored::kFloat32) transpose_out<Width, float>(t, first, sums, out);
    else if (t.queries == Stored::kBFloat16) transpose_out<Width, BFloat16>(t, first, sums, out);
    else transpose_out<Width, Float16>(t, first, sums, out);
  }
}

struct Face {
  void (*attend)(const Task&, Scratch&);
  int64_t lanes;
};

void attend_plain(const Task& t, Scratch& s) { attend<4>(t, s); }
#if WORLDENV_X86
WORLDENV_AVX2 void attend_avx2(const Task& t, Scratch& s) { attend<8>(t, s); }
WORLDENV_AVX512 void attend_avx512(const Task& t, Scratch& s) { attend<16>(t, s); }
#endif

Face face() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return {attend_avx512, Block<16>::kLanes};
  if (isa() == Isa::kAvx2) return {attend_avx2, Block<8>::kLanes};
#endif
  return {attend_plain, Block<4>::kLanes};
}

void check_ring(const Tensor& ring, const Tensor& like, ScalarType dtype) {
  bool same = ring.dim() == 4 && ring.scalar_type() == dtype;
  for (int64_t dim = 0; same && dim < 4; ++dim) same = ring.size(dim) == like.size(dim);
  STD_TORCH_CHECK(same, "keys and values should be [B, G, C, D], of the dtype of query or int8");
  STD_TORCH_CHECK(!ring.numel() || (ring.stride(3) == 1 && ring.stride(2) == ring.size(3) &&
                                    ring.stride(1) == ring.size(2) * ring.size(3)),
                  "keys and values of an episode should be contiguous");
}

const float* scale_of(const std::optional<Tensor>& scale, const Tensor& ring) {
  if (!scale) return nullptr;
  STD_TORCH_CHECK(scale->scalar_type() == ScalarType::Float && scale->dim() == 3 && scale->size(0) == ring.size(0) &&
                      scale->size(1) == ring.size(1) && scale->size(2) == ring.size(2),
                  "key_scale and value_scale should be float32 [B, G, C]");
  STD_TORCH_CHECK(!scale->numel() || (scale->stride(2) == 1 && scale->stride(1) == scale->size(2)),
                  "key_scale and value_scale of an episode should be contiguous");
  return scale->const_data_ptr<float>();
}

}  // namespace

Tensor windowed_attention(
    const Tensor& query_any,                       // [B, M, H, D] float32, bfloat16, float16
    const Tensor& keys,                            // [B, G, C, D] likewise, or int8
    const Tensor& values,                          // [B, G, C, D]
    const Tensor& length_any,                      // [B] int32
    const std::optional<Tensor>& key_scale_any,    // [B, G, C] float32, with int8
    const std::optional<Tensor>& value_scale_any   // [B, G, C]
) {                                                // [B, M, H, D]
  STD_TORCH_CHECK(query_any.dim() == 4 && keys.dim() == 4, "query should be [B, M, H, D] and keys [B, G, C, D]");
  const int64_t batch = query_any.size(0), tokens = query_any.size(1), heads_all = query_any.size(2);
  const int64_t groups = keys.size(1), places = keys.size(2), width = query_any.size(3);
  STD_TORCH_CHECK(keys.size(0) == batch && keys.size(3) == width && groups && heads_all % groups == 0,
                  "keys should be [B, G, C, D], with G that divides the heads of query");
  const bool levels = keys.scalar_type() == ScalarType::Char;
  const Stored queries = stored(query_any);
  check_ring(keys, keys, levels ? ScalarType::Char : query_any.scalar_type());
  check_ring(values, keys, keys.scalar_type());
  STD_TORCH_CHECK(levels == key_scale_any.has_value() && levels == value_scale_any.has_value(),
                  "key_scale and value_scale are given with int8 keys and values, and only then");
  STD_TORCH_CHECK(length_any.scalar_type() == ScalarType::Int && length_any.dim() == 1 && length_any.size(0) == batch,
                  "length should be int32 [B]");
  const float *key_scale = scale_of(key_scale_any, keys), *value_scale = scale_of(value_scale_any, keys);
  const int64_t key_scale_stride = levels ? key_scale_any->stride(0) : 0;
  const int64_t value_scale_stride = levels ? value_scale_any->stride(0) : 0;
  const Tensor query = torch::stable::contiguous(query_any), length = torch::stable::contiguous(length_any);
  const int32_t* lengths = length.const_data_ptr<int32_t>();
  for (int64_t b = 0; b < batch; ++b)
    STD_TORCH_CHECK(lengths[b] >= 0 && lengths[b] <= places, "length should lie in [0, C]");
  Tensor out = torch::stable::new_empty(query, {batch, tokens, heads_all, width});
  if (!out.numel()) return out;
  const char *from = static_cast<const char*>(query.data_ptr()), *key = static_cast<const char*>(keys.data_ptr());
  const char* value = static_cast<const char*>(values.data_ptr());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  const Stored ring = stored(keys);
  const int64_t item = size_of(queries), piece = places * width, key_stride = keys.stride(0);
  const int64_t value_stride = values.stride(0), heads = heads_all / groups;
  const Face some = face();
  const int64_t rows = tokens * heads, block = kPanels * some.lanes, blocks = (rows + block - 1) / block;
  torch::stable::parallel_for(0, batch * groups * blocks, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(width, some.lanes);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / (groups * blocks), g = i / blocks % groups, first = i % blocks * block;
      const int64_t head = (b * tokens * heads_all + g * heads) * width * item;
      some.attend(
          Task{from + head, key + (b * key_stride + g * piece) * size_of(ring),
               value + (b * value_stride + g * piece) * size_of(ring),
               levels ? key_scale + b * key_scale_stride + g * places : nullptr,
               levels ? value_scale + b * value_scale_stride + g * places : nullptr, to + head, queries, ring, first,
               std::min(first + block, rows), heads, heads_all, lengths[b], width},
          scratch);
    }
  });
  return out;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "windowed_attention(Tensor query, Tensor keys, Tensor values, Tensor length, Tensor? key_scale=None, Tensor? "
      "value_scale=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) {
  m.impl("windowed_attention", TORCH_BOX(&worldenv::cpu::windowed_attention));
}
