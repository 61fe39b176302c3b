// Kernel of the op windowed_attention on mma.sync, for sm_80 and later, and what it shares with the one for Hopper.
//
// The H / G query heads of a key head attend to the same ring, so they are rows of one matrix: row r is token r / R of
// head r mod R of the group, R = H / G. A block takes kRows rows and walks over the ring in tiles of kKeys tokens,
// with a running maximum and sum for each row (Milakov & Gimelshein 2018; Dao et al. 2022).
//
// A tile of D columns lies in shared memory as panels of 64 columns: 128 bytes a row, and the eight chunks of 16 bytes
// of row r permuted by r mod 8. So eight rows of one chunk never meet in a bank, and it is the layout that Hopper's
// matrix units call a swizzle of 128 bytes.
//
// int8 rings are widened on their way to the tile, which is exact; the scale of a key multiplies its scores and that
// of a value its weights. Weights and values are then bfloat16, whose range takes any scale.
#pragma once

#include <cmath>

#include "ptx.h"

namespace worldenv::cuda {

struct WindowedAttention {
  const void* query;         // [B, M, H, D]
  const void* keys;          // [B, G, C, D], an episode is key_stride numbers from the next
  const void* values;        // [B, G, C, D]
  const int32_t* length;     // [B]
  const float* key_scale;    // [B, G, C] with int8 rings
  const float* value_scale;  // [B, G, C]
  void* out;                 // [B, M, H, D]
  int64_t key_stride, value_stride, key_scale_stride, value_scale_stride;
  int batch, tokens, query_heads, key_heads, capacity;  // B, M, H, G, C
  float scale;                                          // log2(e) / sqrt(D)
};

constexpr float kInfinity = INFINITY;

template <bool Condition, typename A, typename B>
struct Either {
  using Type = A;
};
template <typename A, typename B>
struct Either<false, A, B> {
  using Type = B;
};

// Where a chunk of 16 bytes of a tile of `rows` rows lies, in bytes.
WORLDENV_DEVICE uint32_t place_in_tile(int row, int chunk, int rows) {
  return (chunk / 8 * rows + row) * 128 + ((chunk ^ row) % 8) * 16;
}

// From the place of chunk 0 or 1 of a row to that of the chunk 2 k further; one instruction where k is known.
template <int Rows>
WORLDENV_DEVICE Shared further(Shared place, int k) {
  return (place ^ (2 * k % 8 * 16)) + 2 * k / 8 * Rows * 128;  // a row starts at a multiple of 128
}

// What a block works on: rows [first_row, first_row + kRows) of the queries of one key head of one episode.
struct Work {
  int b, g, first_row, rows, length, repeats;  // repeats: R, query heads of a key head

  WORLDENV_DEVICE Work(const WindowedAttention& p, int64_t index, int rows_per_block) {
    repeats = p.query_heads / p.key_heads;
    rows = p.tokens * repeats;
    const int blocks = (rows + rows_per_block - 1) / rows_per_block;
    first_row = static_cast<int>(index % blocks) * rows_per_block;
    g = static_cast<int>(index / blocks % p.key_heads);
    b = static_cast<int>(index / blocks / p.key_heads);
    length = p.length[b] < 0 ? 0 : p.length[b] < p.capacity ? p.length[b] : p.capacity;
  }

  // Where a row's D numbers begin in [B, M, H, D].
  template <int D>
  WORLDENV_DEVICE int64_t offset(const WindowedAttention& p, int row) const {
    const int64_t token = int64_t(b) * p.tokens + row / repeats;
    return (token * p.query_heads + g * repeats + row % repeats) * D;
  }
};

// One episode's ring of one key head.
template <typename Ring>
struct Line {
  const Ring* numbers;
  const float* scale;

  WORLDENV_DEVICE Line(const void* ring, const float* scales, int64_t stride, int64_t scale_stride, const Work& work,
                       int capacity, int d) {
    numbers = static_cast<const Ring*>(ring) + work.b * stride + int64_t(work.g) * capacity * d;
    scale = scales ? scales + work.b * scale_stride + int64_t(work.g) * capacity : nullptr;
  }
};

// Starts to copy `Rows` rows of queries, zeros after the last.
template <typename T, int D, int Rows, int Threads>
WORLDENV_DEVICE void copy_queries(Shared tile, const WindowedAttention& p, const Work& work, int first, int thread) {
  const int chunk = thread % (D / 8);
#pragma unroll 1
  for (int row = thread / (D / 8); row < Rows; row += Threads / (D / 8)) {
    const bool there = first + row < work.rows;
    const T* from = static_cast<const T*>(p.query) + (there ? work.offset<D>(p, first + row) + chunk * 8 : 0);
    copy16(tile + place_in_tile(row, chunk, Rows), from, there);
  }
}

// Starts to copy tokens [first, first + Keys) of a ring, zeros from `length` on: 16 bits straight into the tile, int8
// into `staging`, from where `widen` takes them. Whatever lies beyond `length` is never read.
template <typename Ring, int D, int Keys, int Threads>
WORLDENV_DEVICE void copy_ring(Shared tile, Shared staging, Shared scales, const Line<Ring>& line, int first,
                               int length, int thread) {
  constexpr int kPerChunk = 16 / sizeof(Ring), kChunks = D / kPerChunk, kStep = Threads / kChunks;
  static_assert(kStep % 8 == 0, "all rows of a thread have the same permutation");
  const int key = thread / kChunks, chunk = thread % kChunks;
  const Ring* from = line.numbers + (first + key) * D + chunk * kPerChunk;
  const Shared to = sizeof(Ring) == 1 ? staging + thread * 16 : tile + place_in_tile(key, chunk, Keys);
#pragma unroll
  for (int i = 0; i < Keys / kStep; ++i) {
    const bool there = first + key + i * kStep < length;
    copy16(to + i * (sizeof(Ring) == 1 ? Threads * 16 : kStep * 128), there ? from + i * kStep * D : line.numbers,
           there);
  }
  if (sizeof(Ring) == 1 && thread < Keys) {
    const bool there = first + thread < length;
    copy4(scales + thread * 4, line.scale + (there ? first + thread : 0), there);
  }
}

// Four int8 as two pairs. Bytes become the mantissas of numbers with a known exponent, minus what that adds.
template <typename T>
WORLDENV_DEVICE void widen4(uint32_t four, uint32_t& first, uint32_t& second);

template <>
WORLDENV_DEVICE void widen4<Half>(uint32_t four, uint32_t& first, uint32_t& second) {
  const uint32_t biased = four ^ 0x80808080u;                                      // x + 128
  first = add_pair<Half>(permute_bytes(biased, 0x64646464u, 0x4140), 0xe480e480u);  // (1024 + x + 128) - 1152
  second = add_pair<Half>(permute_bytes(biased, 0x64646464u, 0x4342), 0xe480e480u);
}

template <>
WORLDENV_DEVICE void widen4<Bf16>(uint32_t four, uint32_t& first, uint32_t& second) {
  const uint32_t a = permute_bytes(four, 0x43434343u, 0x4140), b = permute_bytes(four, 0x43434343u, 0x4342);
  // (128 + lower seven bits) - (128, or 256 where the sign bit is set)
  first = add_pair<Bf16>(a & 0xff7fff7fu, (a & 0xff80ff80u) ^ 0x80008000u);
  second = add_pair<Bf16>(b & 0xff7fff7fu, (b & 0xff80ff80u) ^ 0x80008000u);
}

// Widens the chunks that this very thread has copied, so that its own wait is enough; AtOnce of them at a time.
template <typename T, int D, int Keys, int Threads, int AtOnce>
WORLDENV_DEVICE void widen(Shared tile, Shared staging, int thread) {
  constexpr int kStep = Threads / (D / 16);
  const Shared to = tile + place_in_tile(thread / (D / 16), thread % (D / 16) * 2, Keys);
#pragma unroll AtOnce
  for (int i = 0; i < Keys / kStep; ++i) {
    const Vec16 narrow = load_shared16(staging + (thread + i * Threads) * 16);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Vec16 wide;
      widen4<T>(narrow.word[2 * half], wide.word[0], wide.word[1]);
      widen4<T>(narrow.word[2 * half + 1], wide.word[2], wide.word[3]);
      store_shared((to ^ (half * 16)) + i * kStep * 128, wide);
    }
  }
}

// The matrix units give a thread four numbers of each 8 columns: rows lane / 4 and lane / 4 + 8 of a tile of 16,
// columns 2 (lane mod 4) and the next. Scores and sums of 8 N columns are kept as 4 N numbers in that order.
template <int N>
WORLDENV_DEVICE void scale_columns(float (&x)[4 * N], Shared scales, int lane) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    float first, second;
    load_shared_floats(scales + (8 * i + lane % 4 * 2) * 4, first, second);
    x[4 * i] *= first, x[4 * i + 1] *= second, x[4 * i + 2] *= first, x[4 * i + 3] *= second;
  }
}

template <int N>
WORLDENV_DEVICE void mask_columns(float (&x)[4 * N], int columns, int lane) {
#pragma unroll
  for (int i = 0; i < 4 * N; ++i)
    if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= columns) x[i] = -kInfinity;
}

// The two rows of a thread: their maximum so far, this thread's part of their sum, and by what both shrink.
struct Softmax {
  float most[2] = {-kInfinity, -kInfinity}, sum[2] = {0, 0}, shrink[2];

  // Scores become weights.
  template <int N>
  WORLDENV_DEVICE void add(float (&x)[4 * N], float scale) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float most_now = most[row];
#pragma unroll
      for (int i = 0; i < N; ++i) most_now = fmaxf(most_now, fmaxf(x[4 * i + 2 * row], x[4 * i + 2 * row + 1]));
      most_now = fmaxf(most_now, shuffle_xor(most_now, 1));
      most_now = fmaxf(most_now, shuffle_xor(most_now, 2));
      shrink[row] = exp2_fast((most[row] - most_now) * scale);
      most[row] = most_now;
      sum[row] *= shrink[row];
      const float shift = most_now * scale;
#pragma unroll
      for (int i = 0; i < N; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& weight = x[4 * i + 2 * row + j];
          weight = exp2_fast(weight * scale - shift);
          sum[row] += weight;
        }
    }
  }

  template <int N>
  WORLDENV_DEVICE void shrink_all(float (&out)[4 * N]) const {
#pragma unroll
    for (int i = 0; i < 4 * N; ++i) out[i] *= shrink[i / 2 % 2];
  }

  // What the sums of a row are to be multiplied with at the end; 0 where nothing was added.
  WORLDENV_DEVICE float inverse(int row) const {
    float total = sum[row];
    total += shuffle_xor(total, 1);
    total += shuffle_xor(total, 2);
    return most[row] == -kInfinity && total == 0 ? 0 : 1 / total;
  }
};

// Writes 16 rows of a warp, by way of a tile of which they are this warp's own.
template <typename T, int D, int Rows>
WORLDENV_DEVICE void write_rows(const float (&out)[D / 2], const Softmax& softmax, Shared tile, int row_in_tile,
                                int first, const WindowedAttention& p, const Work& work, int lane) {
  const float inverse[2] = {softmax.inverse(0), softmax.inverse(1)};
#pragma unroll
  for (int i = 0; i < D / 8; ++i)
#pragma unroll
    for (int row = 0; row < 2; ++row)
      store_shared(tile + place_in_tile(row_in_tile + lane / 4 + 8 * row, i, Rows) + lane % 4 * 4,
                   pack<T>(out[4 * i + 2 * row] * inverse[row], out[4 * i + 2 * row + 1] * inverse[row]));
  sync_warp();
  for (int i = lane; i < 16 * D / 8; i += kWarp) {
    const int row = i / (D / 8), chunk = i % (D / 8), at = first + row_in_tile + row;
    if (at < work.rows)
      *reinterpret_cast<Vec16*>(static_cast<T*>(p.out) + work.offset<D>(p, at) + chunk * 8) =
          load_shared16(tile + place_in_tile(row_in_tile + row, chunk, Rows));
  }
}

// On mma.sync: a warp has 32 rows, whose sums leave few registers for anything else
constexpr int kRows = 128, kThreads = 128, kTilesOfWarp = kRows / (kThreads / kWarp) / 16;

template <int D>
constexpr int kKeys = D == 64 ? 64 : 32;  // more do not fit the registers

template <typename Ring, int D>
constexpr int shared_bytes() {  // queries, keys, values; with int8, their staging and scales
  return (kRows + 2 * kKeys<D>) * D * 2 + (sizeof(Ring) == 1 ? 2 * kKeys<D> * (D + 4) : 0);
}

// scores = queries keys^T, for the 32 rows of a warp.
template <typename T, int D>
WORLDENV_DEVICE void score(float (&scores)[kTilesOfWarp][kKeys<D> / 2], Shared queries, Shared keys, int warp,
                           int lane) {
#pragma unroll
  for (int t = 0; t < kTilesOfWarp; ++t)
#pragma unroll
    for (int i = 0; i < kKeys<D> / 2; ++i) scores[t][i] = 0;
  const Shared query = queries + place_in_tile(warp * kTilesOfWarp * 16 + lane % 16, lane / 16, kRows);
  const Shared key = keys + place_in_tile(lane % 8 + lane / 16 * 8, lane / 8 % 2, kKeys<D>);
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    uint32_t a[kTilesOfWarp][4];
#pragma unroll
    for (int t = 0; t < kTilesOfWarp; ++t) load_matrices(a[t], further<kRows>(query, k) + t * 16 * 128);
#pragma unroll
    for (int n = 0; n < kKeys<D> / 16; ++n) {
      uint32_t b[4];
      load_matrices(b, further<kKeys<D>>(key, k) + n * 16 * 128);
#pragma unroll
      for (int t = 0; t < kTilesOfWarp; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          multiply_add<T>(*reinterpret_cast<float(*)[4]>(&scores[t][8 * n + 4 * half]), a[t], b[2 * half],
                          b[2 * half + 1]);
    }
  }
}

// out += weights values.
template <typename T, int D>
WORLDENV_DEVICE void weigh(float (&out)[kTilesOfWarp][D / 2], const float (&weights)[kTilesOfWarp][kKeys<D> / 2],
                           Shared values, int lane) {
  const Shared value = values + place_in_tile(lane % 16, lane / 16, kKeys<D>);
#pragma unroll
  for (int k = 0; k < kKeys<D> / 16; ++k) {
    uint32_t a[kTilesOfWarp][4];
#pragma unroll
    for (int t = 0; t < kTilesOfWarp; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) a[t][i] = pack<T>(weights[t][8 * k + 2 * i], weights[t][8 * k + 2 * i + 1]);
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      uint32_t b[4];
      load_matrices_transposed(b, further<kKeys<D>>(value, n) + k * 16 * 128);
#pragma unroll
      for (int t = 0; t < kTilesOfWarp; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          multiply_add<T>(*reinterpret_cast<float(*)[4]>(&out[t][8 * n + 4 * half]), a[t], b[2 * half],
                          b[2 * half + 1]);
    }
  }
}

template <typename T, typename Ring, int D>
__global__ void __launch_bounds__(kThreads, 2) windowed_attention_kernel(const WindowedAttention p) {
  constexpr bool kInt8 = sizeof(Ring) == 1;
  using Value = typename Either<kInt8, Bf16, T>::Type;
  const int thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp;
  const Shared queries = shared_start(), keys = queries + kRows * D * 2, values = keys + kKeys<D> * D * 2;
  const Shared key_staging = values + kKeys<D> * D * 2, value_staging = key_staging + kKeys<D> * D;
  const Shared key_scales = value_staging + kKeys<D> * D, value_scales = key_scales + kKeys<D> * 4;

  const Work work(p, blockIdx.x, kRows);
  const Line<Ring> key_line(p.keys, p.key_scale, p.key_stride, p.key_scale_stride, work, p.capacity, D);
  const Line<Ring> value_line(p.values, p.value_scale, p.value_stride, p.value_scale_stride, work, p.capacity, D);

  float out[kTilesOfWarp][D / 2] = {};
  Softmax softmax[kTilesOfWarp];
  copy_queries<T, D, kRows, kThreads>(queries, p, work, work.first_row, thread);
  copy_ring<Ring, D, kKeys<D>, kThreads>(keys, key_staging, key_scales, key_line, 0, work.length, thread);
  copy_commit();
  for (int first = 0; first < work.length; first += kKeys<D>) {
    copy_wait<0>();
    if constexpr (kInt8) widen<T, D, kKeys<D>, kThreads, 1>(keys, key_staging, thread);
    sync_block();  // the keys are there for all, and all have done with the values of the last tile
    copy_ring<Ring, D, kKeys<D>, kThreads>(values, value_staging, value_scales, value_line, first, work.length, thread);
    copy_commit();

    float scores[kTilesOfWarp][kKeys<D> / 2];
    score<T, D>(scores, queries, keys, warp, lane);
    if constexpr (kInt8)
#pragma unroll
      for (int t = 0; t < kTilesOfWarp; ++t) scale_columns<kKeys<D> / 8>(scores[t], key_scales, lane);
    if (first + kKeys<D> > work.length)
#pragma unroll
      for (int t = 0; t < kTilesOfWarp; ++t) mask_columns<kKeys<D> / 8>(scores[t], work.length - first, lane);

    copy_wait<0>();
    if constexpr (kInt8) widen<Value, D, kKeys<D>, kThreads, 1>(values, value_staging, thread);
    sync_block();  // the values are there for all, and all have done with the keys
    copy_ring<Ring, D, kKeys<D>, kThreads>(keys, key_staging, key_scales, key_line, first + kKeys<D>, work.length,
                                           thread);
    copy_commit();
#pragma unroll
    for (int t = 0; t < kTilesOfWarp; ++t) {
      softmax[t].template add<kKeys<D> / 8>(scores[t], p.scale);
      softmax[t].template shrink_all<D / 8>(out[t]);
      if constexpr (kInt8) scale_columns<kKeys<D> / 8>(scores[t], value_scales, lane);
    }
    weigh<Value, D>(out, scores, values, lane);
  }
  copy_wait<0>();
  sync_block();  // every thread's copies of queries have arrived, also where there was no tile
#pragma unroll
  for (int t = 0; t < kTilesOfWarp; ++t)
    write_rows<T, D, kRows>(out[t], softmax[t], queries, (warp * kTilesOfWarp + t) * 16, work.first_row, p, work, lane);
}

}  // namespace worldenv::cuda
