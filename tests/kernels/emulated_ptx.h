// The functions of csrc/cuda/ptx.h for the emulator.
#pragma once

namespace worldenv::cuda {

inline Shared shared_start() { return emulator::kStart; }

template <typename T>
uint32_t pack(float first, float second) {
  return uint32_t(emulator::narrow<T>(second)) << 16 | emulator::narrow<T>(first);
}

template <typename T>
void unpack(uint32_t pair, float& first, float& second) {
  first = emulator::wide<T>(pair & 0xffff);
  second = emulator::wide<T>(pair >> 16);
}

inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= uint32_t(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}

template <typename T>
uint32_t add_pair(uint32_t a, uint32_t b) {
  float x[4];
  unpack<T>(a, x[0], x[1]);
  unpack<T>(b, x[2], x[3]);
  return pack<T>(x[0] + x[2], x[1] + x[3]);
}

inline float exp2_fast(float x) { return std::exp2(x); }

inline float max_nan(float a, float b) { return a != a || b != b ? NAN : std::fmax(a, b); }

inline float multiply(float a, float b) {
  volatile float product = a * b;
  return product;
}

inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

inline void sincosf(float angle, float* sine, float* cosine) { *sine = std::sin(angle), *cosine = std::cos(angle); }

inline float shuffle_xor(float x, int lanes) {
  struct Operand {
    float given, taken;
    int lanes;
  } operand{x, 0, lanes};
  emulator::in_warp("shuffle", operand, [](auto& all) {
    auto at = [&](int i) -> Operand& { return *static_cast<Operand*>(all[i]); };
    for (int i = 0; i < kWarp; ++i) at(i).taken = at(i ^ at(i).lanes).given;
  });
  return operand.taken;
}

inline void sync_warp() {
  int nothing = 0;
  emulator::in_warp("sync_warp", nothing, [](auto&) {});
}

inline void sync_some(int number, int threads) {  // of a named barrier only the count matters
  emulator::Meeting& meeting = emulator::block->meetings[1000 + number];
  const long generation = meeting.generation;
  if (++meeting.arrived == threads) {
    meeting.arrived = 0;
    ++meeting.generation;
  } else {
    emulator::wait_until([&meeting, generation] { return meeting.generation != generation; });
  }
}

inline void sync_block() { sync_some(0, emulator::block->fibers.size()); }

inline void store_shared(Shared to, uint32_t x) {
  std::memcpy(emulator::shared_at(to, 4), &x, 4);
  emulator::written(to);
}

inline void store_shared(Shared to, const Vec16& x) {
  std::memcpy(emulator::shared_at(to, 16), &x, 16);
  emulator::written(to);
}

inline Vec16 load_shared16(Shared from) {
  Vec16 x;
  std::memcpy(&x, emulator::shared_at(from, 16), 16);
  return x;
}

inline void load_shared_floats(Shared from, float& first, float& second) {
  float x[2];
  std::memcpy(x, emulator::shared_at(from, 8), 8);
  first = x[0], second = x[1];
}

inline void copy16(Shared to, const void* from, bool there) {
  if (there && reinterpret_cast<uintptr_t>(from) % 16) emulator::fail("copy16 from an address that is not aligned");
  emulator::self().open.push_back({to, there ? from : nullptr, 16});
}

inline void copy4(Shared to, const void* from, bool there) {
  emulator::self().open.push_back({to, there ? from : nullptr, 4});
}

inline void copy_commit() {
  emulator::Fiber& self = emulator::self();
  if (emulator::coin()) {  // this one is fast
    emulator::arrive(self.open);
    self.open.clear();
  }
  self.committed.push_back(std::move(self.open));
  self.open.clear();
}

template <int Groups>
void copy_wait() {
  auto& groups = emulator::self().committed;
  while (groups.size() > Groups) {
    emulator::arrive(groups.front());
    groups.pop_front();
  }
}

inline void load_any_matrices(uint32_t (&x)[4], Shared row, bool transposed) {
  struct Operand {
    uint32_t* x;
    Shared row;
  } operand{x, row};
  emulator::in_warp(transposed ? "ldmatrix.trans" : "ldmatrix", operand, [transposed](auto& all) {
    auto at = [&](int i) -> Operand& { return *static_cast<Operand*>(all[i]); };
    for (int i = 0; i < 4; ++i) {
      uint16_t matrix[8][8];
      for (int j = 0; j < 8; ++j) std::memcpy(matrix[j], emulator::shared_at(at(8 * i + j).row, 16), 16);
      for (int lane = 0; lane < kWarp; ++lane) {
        const int r = lane / 4, c = lane % 4 * 2;
        const uint16_t first = transposed ? matrix[c][r] : matrix[r][c];
        const uint16_t second = transposed ? matrix[c + 1][r] : matrix[r][c + 1];
        at(lane).x[i] = uint32_t(second) << 16 | first;
      }
    }
  });
}

inline void load_matrices(uint32_t (&x)[4], Shared row) { load_any_matrices(x, row, false); }

inline void load_matrices_transposed(uint32_t (&x)[4], Shared row) { load_any_matrices(x, row, true); }

// mma.sync.m16n8k16: section "Matrix Fragments for mma.m16n8k16 with floating point type".
template <typename T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operand {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
  } operand{d, a, {b0, b1}};
  emulator::in_warp("mma", operand, [](auto& all) {
    auto at = [&](int i) -> Operand& { return *static_cast<Operand*>(all[i]); };
    float left[16][16], right[16][8];
    for (int lane = 0; lane < kWarp; ++lane) {
      const int group = lane / 4, pair = lane % 4 * 2;
      for (int i = 0; i < 8; ++i) {
        const int row = group + (i / 2 % 2 ? 8 : 0), column = pair + i % 2 + (i >= 4 ? 8 : 0);
        left[row][column] = emulator::wide<T>(at(lane).a[i / 2] >> 16 * (i % 2) & 0xffff);
      }
      for (int i = 0; i < 4; ++i)
        right[pair + i % 2 + (i >= 2 ? 8 : 0)][group] = emulator::wide<T>(at(lane).b[i / 2] >> 16 * (i % 2) & 0xffff);
    }
    for (int lane = 0; lane < kWarp; ++lane)
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) at(lane).d[i] += left[row][k] * right[k][column];
      }
  });
}

}  // namespace worldenv::cuda
