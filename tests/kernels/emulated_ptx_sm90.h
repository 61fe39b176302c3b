// The functions of csrc/cuda/ptx_sm90.h for the emulator. A product of matrix units is done when it is started or as
// late as its wait allows, at random; what they read must have been fenced by the thread that wrote it.
#pragma once

namespace worldenv::cuda {
namespace emulator {

inline int warpgroup_thread() { return block->current % 128; }

template <typename Operand, typename Work>
void in_warpgroup(const char* what, Operand& operand, Work work) {
  const int number = block->current / 128;
  together(2000 + number, 128, warpgroup_thread(), what, operand,
           [&](auto& all) { work(all, block->warpgroups[number]); });
}

// A number of 16 bits at an address whose bits 4 to 6 are permuted by bits 7 to 9.
inline uint16_t permuted(Shared address) {
  address ^= (address >> 7 & 7) << 4;
  if (block->unfenced_by[(address - kStart) / 16]) fail("matrix units read what its writer has not fenced");
  uint16_t bits;
  std::memcpy(&bits, shared_at(address, 2), 2);
  return bits;
}

// "Asynchronous warpgroup level matrix shared memory layout": fields of the matrix descriptor.
struct Matrix {
  Shared start;
  uint32_t leading, stride;

  explicit Matrix(uint64_t descriptor)
      : start((descriptor & 0x3fff) << 4), leading((descriptor >> 16 & 0x3fff) << 4),
        stride((descriptor >> 32 & 0x3fff) << 4) {
    if (descriptor >> 62 != 1) fail("the matrix is not permuted over 128 bytes");
    if (descriptor >> 49 & 7) fail("the matrix has a base offset");
  }
  // Row i (of 64 or N), element k of 16, of an operand whose K is contiguous.
  uint16_t k_major(int i, int k) const { return permuted(start + i / 8 * stride + i % 8 * 128 + k * 2); }
  // Element (k, i) of an operand whose rows are contiguous in M or N.
  uint16_t mn_major(int i, int k) const {
    return permuted(start + i / 64 * leading + k / 8 * stride + k % 8 * 128 + i % 64 * 2);
  }
};

// Row and column of number i of a thread's part of a result of 64 rows.
inline int row_of(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + (i / 2 % 2) * 8; }
inline int column_of(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

template <int N, typename Left, typename Right>
void multiply_tile(float* const (&d)[128], Left left, Right right, bool accumulate) {
  float a[64][16], b[16][N];
  for (int k = 0; k < 16; ++k) {
    for (int i = 0; i < 64; ++i) a[i][k] = left(i, k);
    for (int j = 0; j < N; ++j) b[k][j] = right(j, k);
  }
  for (int thread = 0; thread < 128; ++thread)
    for (int i = 0; i < N / 2; ++i) {
      float sum = accumulate ? d[thread][i] : 0;
      for (int k = 0; k < 16; ++k) sum += a[row_of(thread, i)][k] * b[k][column_of(thread, i)];
      d[thread][i] = sum;
    }
}

}  // namespace emulator

inline void barrier_init(Shared barrier, int arrivals) {
  emulator::shared_at(barrier, 8);
  emulator::block->barriers[barrier] = {arrivals, arrivals, 0};
}

inline emulator::MemoryBarrier& barrier_at(Shared barrier) {
  const auto found = emulator::block->barriers.find(barrier);
  if (found == emulator::block->barriers.end()) emulator::fail("no barrier is at this address");
  return found->second;
}

inline void barrier_arrive(Shared barrier) {
  emulator::MemoryBarrier& state = barrier_at(barrier);
  if (--state.pending == 0) state.pending = state.count, state.phase ^= 1;
}

inline void barrier_wait(Shared barrier, uint32_t parity) {
  emulator::MemoryBarrier& state = barrier_at(barrier);
  emulator::wait_until([&state, parity] { return state.phase != parity; });
}

inline void fence_for_matrix_units() {
  for (uint32_t chunk : emulator::self().unfenced) --emulator::block->unfenced_by[chunk];
  emulator::self().unfenced.clear();
}

template <int Count>
void take_registers() {}
template <int Count>
void give_registers() {}
inline void warpgroup_fence() {}

template <int N>
void hold(float (&)[N]) {}
template <int N>
void hold(uint32_t (&)[N]) {}

inline void warpgroup_commit() {
  int nothing = 0;
  emulator::in_warpgroup("wgmma.commit", nothing, [](auto&, emulator::Warpgroup& group) {
    group.committed.push_back(std::move(group.open));
    group.open.clear();
    if (emulator::coin()) {  // fast: this group and what came before it
      for (auto& products : group.committed) {
        for (auto& product : products) product();
        products.clear();
      }
    }
  });
}

template <int Groups>
void warpgroup_wait() {
  int nothing = 0;
  emulator::in_warpgroup("wgmma.wait", nothing, [](auto&, emulator::Warpgroup& group) {
    while (group.committed.size() > Groups) {
      for (auto& product : group.committed.front()) product();
      group.committed.pop_front();
    }
  });
}

struct Product {
  float* d;
  const uint32_t* a;  // in registers, or null
  uint64_t left, right;
  bool accumulate;
};

template <typename T, int N>
void start_product(Product operand) {
  emulator::in_warpgroup("wgmma", operand, [](auto& all, emulator::Warpgroup& group) {
    std::array<Product, 128> parts;
    std::array<std::array<uint32_t, 4>, 128> registers{};
    for (int i = 0; i < 128; ++i) {
      parts[i] = *static_cast<Product*>(all[i]);
      if (parts[i].a) std::memcpy(registers[i].data(), parts[i].a, 16);
      if (parts[i].left != parts[0].left || parts[i].right != parts[0].right)
        emulator::fail("threads of a warpgroup name different matrices");
    }
    group.open.push_back([parts, registers] {
      float* d[128];
      for (int i = 0; i < 128; ++i) d[i] = parts[i].d;
      const emulator::Matrix right(parts[0].right);
      if (parts[0].a) {  // "Register fragments for wgmma.mma_async.m64nNk16": matrix A
        float a[64][16];
        for (int thread = 0; thread < 128; ++thread)
          for (int i = 0; i < 8; ++i)
            a[emulator::row_of(thread, i)][thread % 4 * 2 + i % 2 + i / 4 * 8] =
                emulator::wide<T>(registers[thread][i / 2] >> 16 * (i % 2) & 0xffff);
        emulator::multiply_tile<N>(
            d, [&](int i, int k) { return a[i][k]; },
            [&](int j, int k) { return emulator::wide<T>(right.mn_major(j, k)); }, parts[0].accumulate);
      } else {
        const emulator::Matrix left(parts[0].left);
        emulator::multiply_tile<N>(
            d, [&](int i, int k) { return emulator::wide<T>(left.k_major(i, k)); },
            [&](int j, int k) { return emulator::wide<T>(right.k_major(j, k)); }, parts[0].accumulate);
      }
    });
  });
}

template <typename T>
void warpgroup_multiply(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
  start_product<T, 128>({d, nullptr, a, b, accumulate});
}

template <typename T, int M>
void warpgroup_multiply_add(float (&d)[M], const uint32_t* a, uint64_t b) {
  start_product<T, 2 * M>({d, a, 0, b, true});
}

}  // namespace worldenv::cuda
