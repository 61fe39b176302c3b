// CPU face of worldenv::reward_head; worldenv/ops/reward_head.py says what it means.
// First every frame's pooled features, normalised; then the layers for a panel of frames at a time. A lane is a frame,
// so the weights are read as they lie and what is between two layers stays in the cache.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "product.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr float kEps = 1e-5f;
constexpr int64_t kGrain = 1 << 14;  // numbers; a thread is not worth waking for less

// The new frames of one episode.
struct Pool {
  const float *feature, *first, *gain, *shift;  // [K, D], [D], [3 D], [3 D]
  float *total, *count, *rows;                  // [D], [1], [K, 3 D]
  int64_t frames, width;
};

struct Head {
  const float *rows, *weight1, *bias1, *weight2, *bias2, *weight3, *bias3;
  float* reward;
  bool* stop;
  int64_t frames, inputs, width1, width2;
  float threshold;
};

template <int Width>
WORLDENV_INLINE void normalise(float* row, int64_t width, const float* gain, const float* shift) {
  Vector<Width> x, sum, square, scale, offset;
  for (int64_t i = 0; i < width; i += Width) {
    x.load(row + i, width - i);
    sum.v += x.v;
  }
  const float mean = sum.add_up() / float(width);
  for (int64_t i = 0; i < width; i += Width) {
    x.load(row + i, width - i);
    x.v -= mean;
    x.keep(width - i);
    square.v += x.v * x.v;
  }
  const float inverse = 1.0f / std::sqrt(square.add_up() / float(width) + kEps);
  for (int64_t i = 0; i < width; i += Width) {
    x.load(row + i, width - i);
    scale.load(gain + i, width - i);
    offset.load(shift + i, width - i);
    x.v = (x.v - mean) * inverse * scale.v + offset.v;
    x.store(row + i, width - i);
  }
}

template <int Width>
WORLDENV_INLINE void pool(const Pool& p) {
  const int64_t d = p.width;
  for (int64_t k = 0; k < p.frames; ++k) {
    float* row = p.rows + k * 3 * d;
    const float inverse = 1.0f / (*p.count += 1.0f);
    for (int64_t i = 0; i < d; i += Width) {
      const int64_t lanes = d - i;
      Vector<Width> now, first, total;
      now.load(p.feature + k * d + i, lanes);
      first.load(p.first + i, lanes);
      total.load(p.total + i, lanes);
      total.v += now.v;
      total.store(p.total + i, lanes);
      now.store(row + i, lanes);
      first.v = now.v - first.v;
      first.store(row + d + i, lanes);
      total.v *= inverse;
      total.store(row + 2 * d + i, lanes);
    }
    normalise<Width>(row, 3 * d, p.gain, p.shift);
  }
}

// Rows of `width` numbers, `count` of them, become lanes; the last is repeated.
template <int Width, int V>
WORLDENV_INLINE void to_lanes(const float* rows, int64_t count, int64_t width, float* panel) {
  constexpr int64_t kLanes = V * Width;
  for (int64_t lane = 0; lane < kLanes; lane += Width)
    for (int64_t i = 0; i < width; i += Width) {
      Vector<Width> square[Width];
      for (int64_t r = 0; r < Width; ++r)
        square[r].load(rows + std::min(lane + r, count - 1) * width + i, width - i);
      transpose<Width>(square);
      for (int64_t r = 0; r < std::min<int64_t>(Width, width - i); ++r)
        square[r].store(panel + (i + r) * kLanes + lane);
    }
}

// Some outputs of a layer, without its bend.
template <int Width, int V, int Rows>
WORLDENV_INLINE void outputs(
    const float* in, int64_t inputs, const float* weight, const float* bias, bool bend, float* out
) {
  Vector<Width> sum[Rows][V];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v].fill(bias[r]);
  product<Width, Rows>(weight, inputs, 1, in, inputs, sum);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      if (bend) sum[r][v].v = sum[r][v].v < 0.0f ? typename Vector<Width>::Floats{} : sum[r][v].v;  // NaN stays NaN
      sum[r][v].store(out + (r * V + v) * Width);
    }
}

template <int Width, int V>
WORLDENV_INLINE void layer(
    const float* in, int64_t inputs, const float* weight, const float* bias, int64_t count, bool bend, float* out
) {
  constexpr int64_t kLanes = V * Width, R = Block<Width>::kRows;
  int64_t o = 0;
  for (; o + R <= count; o += R)
    outputs<Width, V, R>(in, inputs, weight + o * inputs, bias + o, bend, out + o * kLanes);
  for (; o < count; ++o) outputs<Width, V, 1>(in, inputs, weight + o * inputs, bias + o, bend, out + o * kLanes);
}

// Frames first .. first + count - 1, V registers of them at most. room: [3 D + D1 + D2 + 1] rows of lanes.
template <int Width, int V>
WORLDENV_INLINE void judge_panel(const Head& h, int64_t first, int64_t count, float* room) {
  constexpr int64_t kLanes = V * Width;
  float *in = room, *hidden1 = in + h.inputs * kLanes, *hidden2 = hidden1 + h.width1 * kLanes;
  float* logit = hidden2 + h.width2 * kLanes;
  to_lanes<Width, V>(h.rows + first * h.inputs, count, h.inputs, in);
  layer<Width, V>(in, h.inputs, h.weight1, h.bias1, h.width1, true, hidden1);
  layer<Width, V>(hidden1, h.width1, h.weight2, h.bias2, h.width2, true, hidden2);
  layer<Width, V>(hidden2, h.width2, h.weight3, h.bias3, 1, false, logit);
  for (int64_t lane = 0; lane < count; lane += Width) {
    Vector<Width> x;
    x.load(logit + lane);
    x.v = -x.v;
    x.exponential();
    x.v = 1.0f / (1.0f + x.v);
    x.store(h.reward + first + lane, count - lane);
  }
  for (int64_t i = first; i < first + count; ++i) h.stop[i] = h.reward[i] > h.threshold;
}

template <int Width>
WORLDENV_INLINE void judge(const Head& h, int64_t first, int64_t count, float* room) {
  if (count <= Width) judge_panel<Width, 1>(h, first, count, room);
  else judge_panel<Width, Block<Width>::kVectors>(h, first, count, room);
}

struct Face {
  void (*pool)(const Pool&);
  void (*judge)(const Head&, int64_t, int64_t, float*);
  int64_t lanes;
};

void pool_plain(const Pool& p) { pool<4>(p); }
void judge_plain(const Head& h, int64_t first, int64_t count, float* room) { judge<4>(h, first, count, room); }
#if WORLDENV_X86
WORLDENV_AVX2 void pool_avx2(const Pool& p) { pool<8>(p); }
WORLDENV_AVX2 void judge_avx2(const Head& h, int64_t first, int64_t count, float* room) {
  judge<8>(h, first, count, room);
}
WORLDENV_AVX512 void pool_avx512(const Pool& p) { pool<16>(p); }
WORLDENV_AVX512 void judge_avx512(const Head& h, int64_t first, int64_t count, float* room) {
  judge<16>(h, first, count, room);
}
#endif

Face face() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return {pool_avx512, judge_avx512, Block<16>::kLanes};
  if (isa() == Isa::kAvx2) return {pool_avx2, judge_avx2, Block<8>::kLanes};
#endif
  return {pool_plain, judge_plain, Block<4>::kLanes};
}

Tensor dense(const Tensor& tensor, std::initializer_list<int64_t> shape, const char* message) {
  bool same = tensor.scalar_type() == ScalarType::Float && tensor.dim() == int64_t(shape.size());
  int64_t dim = 0;
  for (int64_t size : shape) same = same && tensor.size(dim++) == size;
  STD_TORCH_CHECK(same, message);
  return torch::stable::contiguous(tensor);
}

// The episodes of a batch, given the first.
void pool_all(const Face& face, const Pool& first, int64_t batch) {
  const int64_t size = first.frames * first.width, grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, size));
  torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Pool p = first;
      p.feature += b * size, p.first += b * p.width, p.total += b * p.width, p.count += b, p.rows += 3 * b * size;
      face.pool(p);
    }
  });
}

void judge_all(const Face& face, const Head& head) {
  const int64_t lanes = face.lanes, panels = (head.frames + lanes - 1) / lanes;
  torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> room((head.inputs + head.width1 + head.width2 + 1) * lanes + 16);
    float* aligned = room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64) % 64 / sizeof(float);
    for (int64_t i = begin; i < end; ++i)
      face.judge(head, i * lanes, std::min(lanes, head.frames - i * lanes), aligned);
  });
}

}  // namespace

std::tuple<Tensor, Tensor> reward_head(
    const Tensor& feature_any,  // [B, K, D] float32
    const Tensor& first_any,    // [B, D]
    const Tensor& total,        // [B, D], written
    const Tensor& count,        // [B, 1], written
    const Tensor& gain_any,     // [3 D]
    const Tensor& shift_any,    // [3 D]
    const Tensor& weight1_any,  // [D1, 3 D]
    const Tensor& bias1_any,    // [D1]
    const Tensor& weight2_any,  // [D2, D1]
    const Tensor& bias2_any,    // [D2]
    const Tensor& weight3_any,  // [1, D2]
    const Tensor& bias3_any,    // [1]
    double threshold
) {                             // reward [B, K] float32, stop [B, K] bool
  STD_TORCH_CHECK(feature_any.dim() == 3 && weight1_any.dim() == 2 && weight2_any.dim() == 2,
                  "feature should be [B, K, D], weight1 [D1, 3 D] and weight2 [D2, D1]");
  const int64_t batch = feature_any.size(0), frames = feature_any.size(1), d = feature_any.size(2);
  const int64_t width1 = weight1_any.size(0), width2 = weight2_any.size(0);
  const Tensor feature = dense(feature_any, {batch, frames, d}, "feature should be float32 [B, K, D]");
  const Tensor first = dense(first_any, {batch, d}, "first should be float32 [B, D]");
  STD_TORCH_CHECK(total.is_contiguous() && count.is_contiguous(), "total and count should be contiguous");
  dense(total, {batch, d}, "total should be float32 [B, D]");
  dense(count, {batch, 1}, "count should be float32 [B, 1]");
  const Tensor gain = dense(gain_any, {3 * d}, "gain should be float32 [3 D]");
  const Tensor shift = dense(shift_any, {3 * d}, "shift should be float32 [3 D]");
  const Tensor weight1 = dense(weight1_any, {width1, 3 * d}, "weight1 should be float32 [D1, 3 D]");
  const Tensor bias1 = dense(bias1_any, {width1}, "bias1 should be float32 [D1]");
  const Tensor weight2 = dense(weight2_any, {width2, width1}, "weight2 should be float32 [D2, D1]");
  const Tensor bias2 = dense(bias2_any, {width2}, "bias2 should be float32 [D2]");
  const Tensor weight3 = dense(weight3_any, {1, width2}, "weight3 should be float32 [1, D2]");
  const Tensor bias3 = dense(bias3_any, {1}, "bias3 should be float32 [1]");
  Tensor reward = torch::stable::new_empty(feature, {batch, frames});
  Tensor stop = torch::stable::new_empty(feature, {batch, frames}, ScalarType::Bool);
  Tensor rows = torch::stable::new_empty(feature, {batch * frames, 3 * d});
  const Pool pools{feature.const_data_ptr<float>(), first.const_data_ptr<float>(), gain.const_data_ptr<float>(),
                   shift.const_data_ptr<float>(),   total.mutable_data_ptr<float>(), count.mutable_data_ptr<float>(),
                   rows.mutable_data_ptr<float>(),  frames, d};
  const Face some = face();
  pool_all(some, pools, batch);
  const Head head{pools.rows, weight1.const_data_ptr<float>(), bias1.const_data_ptr<float>(),
                  weight2.const_data_ptr<float>(), bias2.const_data_ptr<float>(), weight3.const_data_ptr<float>(),
                  bias3.const_data_ptr<float>(), reward.mutable_data_ptr<float>(),
                  static_cast<bool*>(stop.mutable_data_ptr()), batch * frames, 3 * d, width1, width2,
                  float(threshold)};
  judge_all(some, head);
  return {reward, stop};
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "reward_head(Tensor feature, Tensor first, Tensor(a!) total, Tensor(b!) count, Tensor gain, Tensor shift, Tensor "
      "weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor weight3, Tensor bias3, float threshold) -> (Tensor, "
      "Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("reward_head", TORCH_BOX(&worldenv::cpu::reward_head)); }
