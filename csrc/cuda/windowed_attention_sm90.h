// Kernel of the op windowed_attention for Hopper (sm_90a), on wgmma.
//
// Its tests have passed on an H200. It is chosen by WORLDENV_WGMMA=1 alone, until the engine has run with it on a
// device.
//
// A block stays on its multiprocessor and takes one piece of work after the other. One warpgroup copies tiles of 128
// tokens into four buffers (keys, values, keys, values), also those of the next piece of work while the others finish
// this one; two warpgroups have 64 rows each. A warpgroup multiplies the next scores while it still weighs values, so
// that its softmax runs beside its matrix units (Shah et al. 2024).
//
// Copies are cp.async, not TMA: it leaves out what lies beyond an episode's length, which may not be a number, and it
// widens int8 on the way.
#pragma once

#include "ptx_sm90.h"
#include "windowed_attention.h"

namespace worldenv::cuda {

constexpr int kWarpgroup = 128, kHopperThreads = 3 * kWarpgroup, kHopperRows = kRows, kHopperKeys = 128;
constexpr int kBuffers = 4, kLag = 2;  // a load is handed over when kLag others have been started

template <typename Ring, int D>
struct HopperShared {
  static constexpr bool kInt8 = sizeof(Ring) == 1;
  static constexpr int kQueries = 64 * D * 2, kTile = kHopperKeys * D * 2, kStaging = kInt8 ? kHopperKeys * D : 0;
  static constexpr int kScales = kInt8 ? kHopperKeys * 4 : 0;
  static constexpr int kResults = 2 * kQueries, kTiles = 2 * kResults, kStagings = kTiles + kBuffers * kTile;
  static constexpr int kAllScales = kStagings + kLag * kStaging, kFull = kAllScales + kBuffers * kScales;
  static constexpr int kEmpty = kFull + kBuffers * 8, kBytes = kEmpty + kBuffers * 8;

  Shared start;
  WORLDENV_DEVICE Shared queries(int warpgroup) const { return start + warpgroup * kQueries; }
  WORLDENV_DEVICE Shared results(int warpgroup) const { return start + kResults + warpgroup * kQueries; }
  WORLDENV_DEVICE Shared tile(uint32_t load) const { return start + kTiles + load % kBuffers * kTile; }
  WORLDENV_DEVICE Shared staging(uint32_t load) const { return start + kStagings + load % kLag * kStaging; }
  WORLDENV_DEVICE Shared scales(uint32_t load) const { return start + kAllScales + load % kBuffers * kScales; }
  WORLDENV_DEVICE Shared full(uint32_t load) const { return start + kFull + load % kBuffers * 8; }
  WORLDENV_DEVICE Shared empty(uint32_t load) const { return start + kEmpty + load % kBuffers * 8; }
  static WORLDENV_DEVICE uint32_t parity(uint32_t load) { return load / kBuffers % 2; }
};

// How matrix units find a tile of panels: its start, the step from panel to panel, that from eight rows to the next,
// and that its chunks are permuted over 128 bytes.
WORLDENV_DEVICE uint64_t matrix_at(Shared start, int panel) {
  return uint64_t(start & 0x3ffff) >> 4 | uint64_t(panel >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

WORLDENV_DEVICE int64_t works_of(const WindowedAttention& p) {
  const int rows = p.tokens * (p.query_heads / p.key_heads);
  return int64_t((rows + kHopperRows - 1) / kHopperRows) * p.key_heads * p.batch;
}

template <typename T, typename Ring, int D>
struct Producer {
  using Memory = HopperShared<Ring, D>;
  using Value = typename Either<Memory::kInt8, Bf16, T>::Type;
  const Memory memory;
  const int thread;
  uint32_t load = 0;  // keys are even, values odd

  WORLDENV_DEVICE void start(const Line<Ring>& line, int first, int length) {
    if (load >= kLag) {
      copy_wait<kLag - 1>();
      finish(load - kLag);
    }
    barrier_wait(memory.empty(load), Memory::parity(load) ^ 1);
    copy_ring<Ring, D, kHopperKeys, kWarpgroup>(memory.tile(load), memory.staging(load), memory.scales(load), line,
                                                first, length, thread);
    copy_commit();
    ++load;
  }

  WORLDENV_DEVICE void finish(uint32_t done) {
    if constexpr (Memory::kInt8) {
      if (done % 2)
        widen<Value, D, kHopperKeys, kWarpgroup, 4>(memory.tile(done), memory.staging(done), thread);
      else
        widen<T, D, kHopperKeys, kWarpgroup, 4>(memory.tile(done), memory.staging(done), thread);
    }
    fence_for_matrix_units();
    barrier_arrive(memory.full(done));
  }

  WORLDENV_DEVICE void run(const WindowedAttention& p) {
    for (int64_t index = blockIdx.x; index < works_of(p); index += gridDim.x) {
      const Work work(p, index, kHopperRows);
      const Line<Ring> keys(p.keys, p.key_scale, p.key_stride, p.key_scale_stride, work, p.capacity, D);
      const Line<Ring> values(p.values, p.value_scale, p.value_stride, p.value_scale_stride, work, p.capacity, D);
      for (int first = 0; first < work.length; first += kHopperKeys) {
        start(keys, first, work.length);
        start(values, first, work.length);
      }
    }
    copy_wait<0>();
    for (uint32_t done = load < kLag ? 0 : load - kLag; done < load; ++done) finish(done);
  }
};

template <typename T, typename Ring, int D>
struct Consumer {
  using Memory = HopperShared<Ring, D>;
  using Value = typename Either<Memory::kInt8, Bf16, T>::Type;
  static constexpr int kColumns = kHopperKeys / 8;
  const Memory memory;
  const int warpgroup, thread;
  uint32_t load = 0;

  WORLDENV_DEVICE int lane() const { return thread % kWarp; }
  WORLDENV_DEVICE void sync() const { sync_some(1 + warpgroup, kWarpgroup); }

  // Starts to copy the queries of a piece of work, once all four warps have done with those of the last.
  WORLDENV_DEVICE void copy_rows(const WindowedAttention& p, int64_t index) const {
    sync();
    if (index < works_of(p)) {
      const Work work(p, index, kHopperRows);
      copy_queries<T, D, 64, kWarpgroup>(memory.queries(warpgroup), p, work, work.first_row + warpgroup * 64, thread);
    }
    copy_commit();
  }

  WORLDENV_DEVICE void release(uint32_t done) const {
    sync_warp();  // also what its lanes read themselves, the scales
    if (lane() == 0) barrier_arrive(memory.empty(done));
  }

  // Starts scores = queries keys^T.
  WORLDENV_DEVICE void start_scores(float (&scores)[kHopperKeys / 2], uint32_t keys) const {
    barrier_wait(memory.full(keys), Memory::parity(keys));
    hold(scores);
    warpgroup_fence();
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
      warpgroup_multiply<T>(scores, matrix_at(memory.queries(warpgroup) + k / 4 * 64 * 128 + k % 4 * 32, 16),
                            matrix_at(memory.tile(keys) + k / 4 * kHopperKeys * 128 + k % 4 * 32, 16), k > 0);
    warpgroup_commit();
  }

  // Starts out += weights values.
  WORLDENV_DEVICE void start_sums(float (&out)[D / 2], uint32_t (&weights)[kHopperKeys / 4], uint32_t values) const {
    hold(out);
    hold(weights);
    warpgroup_fence();
#pragma unroll
    for (int k = 0; k < kHopperKeys / 16; ++k)
      warpgroup_multiply_add<Value>(out, weights + 4 * k,
                                    matrix_at(memory.tile(values) + k * 16 * 128, kHopperKeys * 128));
    warpgroup_commit();
  }

  // Finished scores become weights; `left` tokens of the tile are there.
  WORLDENV_DEVICE void soften(float (&scores)[kHopperKeys / 2], Softmax& softmax, uint32_t keys, int left,
                              float scale) const {
    hold(scores);
    if constexpr (Memory::kInt8) scale_columns<kColumns>(scores, memory.scales(keys), lane());
    release(keys);
    if (left < kHopperKeys) mask_columns<kColumns>(scores, left, lane());
    softmax.template add<kColumns>(scores, scale);
  }

  // Weights as the matrix units take them; waits for the values, whose scales they carry.
  WORLDENV_DEVICE void pack_weights(uint32_t (&weights)[kHopperKeys / 4], float (&scores)[kHopperKeys / 2],
                                    uint32_t values) const {
    barrier_wait(memory.full(values), Memory::parity(values));
    if constexpr (Memory::kInt8) scale_columns<kColumns>(scores, memory.scales(values), lane());
#pragma unroll
    for (int i = 0; i < kHopperKeys / 4; ++i) weights[i] = pack<Value>(scores[2 * i], scores[2 * i + 1]);
  }

  // Leaves the weights of the last tile for the end, so that the next queries can be copied beside its product.
  WORLDENV_DEVICE void attend_but_last(float (&scores)[kHopperKeys / 2], float (&out)[D / 2], Softmax& softmax,
                                       int length, float scale) {
    uint32_t weights[kHopperKeys / 4];
    start_scores(scores, load);
    warpgroup_wait<0>();
    soften(scores, softmax, load, length, scale);
    for (int first = kHopperKeys; first < length; first += kHopperKeys, load += 2) {
      pack_weights(weights, scores, load + 1);
      start_scores(scores, load + 2);
      start_sums(out, weights, load + 1);
      warpgroup_wait<1>();
      soften(scores, softmax, load + 2, length - first, scale);
      warpgroup_wait<0>();
      hold(out);
      hold(weights);
      release(load + 1);
      softmax.template shrink_all<D / 8>(out);
    }
  }

  WORLDENV_DEVICE void attend_last(float (&scores)[kHopperKeys / 2], float (&out)[D / 2]) {
    uint32_t weights[kHopperKeys / 4];
    pack_weights(weights, scores, load + 1);
    start_sums(out, weights, load + 1);
    warpgroup_wait<0>();
    hold(out);
    hold(weights);
    release(load + 1);
    load += 2;
  }

  WORLDENV_DEVICE void run(const WindowedAttention& p) {
    copy_rows(p, blockIdx.x);
    for (int64_t index = blockIdx.x; index < works_of(p); index += gridDim.x) {
      const Work work(p, index, kHopperRows);
      copy_wait<0>();
      fence_for_matrix_units();
      sync();
      float scores[kHopperKeys / 2], out[D / 2] = {};
      Softmax softmax;
      if (work.length > 0) attend_but_last(scores, out, softmax, work.length, p.scale);
      copy_rows(p, index + gridDim.x);
      if (work.length > 0) attend_last(scores, out);
      write_rows<T, D, 64>(out, softmax, memory.results(warpgroup), thread / kWarp * 16,
                           work.first_row + warpgroup * 64, p, work, lane());
    }
    copy_wait<0>();
  }
};

template <typename T, typename Ring, int D>
__global__ void __launch_bounds__(kHopperThreads, 1) windowed_attention_hopper_kernel(const WindowedAttention p) {
#if WORLDENV_HOPPER
  const HopperShared<Ring, D> memory{shared_start()};
  const int warpgroup = threadIdx.x / kWarpgroup, thread = threadIdx.x % kWarpgroup;
  if (threadIdx.x == 0)
    for (int i = 0; i < kBuffers; ++i) {
      barrier_init(memory.full(i), kWarpgroup);
      barrier_init(memory.empty(i), 2 * kWarpgroup / kWarp);
    }
  sync_block();
  if (warpgroup == 0) {
    give_registers<56>();
    Producer<T, Ring, D>{memory, thread}.run(p);
  } else {
    take_registers<224>();
    Consumer<T, Ring, D>{memory, warpgroup - 1, thread}.run(p);
  }
#else
  asm volatile("trap;");  // built for another architecture: never to be launched
#endif
}

}  // namespace worldenv::cuda
