// Runs a CUDA kernel on a CPU: every thread of a block is a fiber, and the functions of csrc/cuda/ptx.h do what the PTX
// manual (ISA 8.5, chapter 9) says of their instructions, with the manual's own fragment layouts.
//
// Made to find errors, not to be fast. Warps run in a random order and are interrupted where they may be; an
// asynchronous copy arrives at once or as late as its wait allows, at random; shared memory starts as NaN. So a
// missing wait or barrier, a wrong index or a wrong swizzle gives a wrong result, and a lost arrival is a deadlock
// that is reported. A seed makes a run repeatable.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
#define WORLDENV_DEVICE inline

namespace worldenv::cuda {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline Index threadIdx, blockIdx, gridDim;

namespace emulator {

constexpr Shared kStart = 1024;  // an address of 0 would hide errors
constexpr size_t kStack = 256 * 1024;

struct Copy {
  Shared to;
  const void* from;
  int bytes;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStack);
  bool done = false;
  bool (*ready)(void*) = nullptr;
  void* ready_data = nullptr;
  std::vector<Copy> open;                   // copies that are not committed yet
  std::deque<std::vector<Copy>> committed;  // groups that have not arrived
  std::vector<uint32_t> unfenced;           // chunks of 16 bytes that the asynchronous proxy may not see yet
};

// Threads that do something together: the last to come does it for all.
struct Meeting {
  int arrived = 0;
  long generation = 0;
  std::string what;
  std::vector<void*> operand = std::vector<void*>(128);
};

struct MemoryBarrier {
  int count = 0, pending = 0;
  unsigned phase = 0;
};

struct Warpgroup {  // products of its matrix units
  std::vector<std::function<void()>> open;
  std::deque<std::vector<std::function<void()>>> committed;
};

struct Block {
  std::vector<uint8_t> shared;
  std::vector<int> unfenced_by;  // of each chunk of 16 bytes: how many threads' writes are not fenced
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::map<int, Meeting> meetings;  // warps by number, named barriers from 1000, warpgroups from 2000
  std::map<Shared, MemoryBarrier> barriers;
  std::map<int, Warpgroup> warpgroups;
  std::mt19937 random;
  ucontext_t scheduler;
  int current = 0;
  std::string error;
  void (*body)(void*);
  void* body_data;
};
inline Block* block;

inline Fiber& self() { return *block->fibers[block->current]; }
inline bool coin() { return block->random() & 1; }

[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error(message); }

inline void yield() { swapcontext(&self().context, &block->scheduler); }

template <typename Test>
void wait_until(Test test) {
  while (!test()) {
    self().ready = [](void* data) { return (*static_cast<Test*>(data))(); };
    self().ready_data = &test;
    yield();
    self().ready = nullptr;
  }
}

template <typename Operand, typename Work>
void together(int meeting_number, int size, int place, const char* what, Operand& operand, Work work) {
  Meeting& meeting = block->meetings[meeting_number];
  if (meeting.arrived && meeting.what != what) fail(std::string("threads meet in ") + meeting.what + " and " + what);
  meeting.what = what;
  meeting.operand[place] = &operand;
  const long generation = meeting.generation;
  if (++meeting.arrived == size) {
    work(meeting.operand);
    meeting.arrived = 0;
    ++meeting.generation;
  } else {
    wait_until([&meeting, generation] { return meeting.generation != generation; });
  }
}

inline int lane() { return block->current % kWarp; }

template <typename Operand, typename Work>
void in_warp(const char* what, Operand& operand, Work work) {
  together(block->current / kWarp, kWarp, lane(), what, operand, work);
}

inline uint8_t* shared_at(Shared address, size_t bytes) {
  if (address < kStart || address - kStart + bytes > block->shared.size() || address % (bytes > 16 ? 16 : bytes))
    fail("shared address " + std::to_string(int64_t(address) - kStart) + " of " + std::to_string(bytes) +
         " bytes is outside or not aligned");
  return &block->shared[address - kStart];
}

inline void written(Shared address) {
  const uint32_t chunk = (address - kStart) / 16;
  ++block->unfenced_by[chunk];
  self().unfenced.push_back(chunk);
}

inline void arrive(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    uint8_t* to = shared_at(copy.to, copy.bytes);
    if (copy.from)
      std::memcpy(to, copy.from, copy.bytes);
    else
      std::memset(to, 0, copy.bytes);
    written(copy.to);
  }
}

inline void enter() {
  try {
    block->body(block->body_data);
    if (!self().open.empty() || !self().committed.empty()) fail("a thread ends before its copies have arrived");
  } catch (const std::exception& error) {
    if (block->error.empty()) block->error = error.what();
  }
  self().done = true;
  yield();
}

inline bool run_warp(int warp) {
  bool moved = false;
  for (int i = warp * kWarp; i < std::min<int>((warp + 1) * kWarp, block->fibers.size()); ++i) {
    Fiber& fiber = *block->fibers[i];
    if (fiber.done || (fiber.ready && !fiber.ready(fiber.ready_data))) continue;
    block->current = i;
    threadIdx.x = i;
    swapcontext(&block->scheduler, &fiber.context);  // returns when the thread waits or ends
    moved = true;
  }
  return moved;
}

inline void run_block(int threads) {
  const int warps = (threads + kWarp - 1) / kWarp;
  for (int i = 0; i < threads; ++i) {
    block->fibers.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *block->fibers.back();
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, kStack};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  for (;;) {
    bool moved = false, done = true;
    const int offset = block->random() % warps;
    for (int i = 0; i < warps; ++i) {
      bool again = true;
      while (again) {
        again = run_warp((i + offset) % warps) && block->random() % 8;
        moved |= again;
      }
    }
    for (auto& fiber : block->fibers) done &= fiber->done;
    if (!block->error.empty()) fail(block->error);
    if (done) return;
    if (moved) continue;
    for (int i = 0; i < warps; ++i) moved |= run_warp(i);
    if (!moved) fail("deadlock: every thread waits");
  }
}

// Runs kernel(parameters) over blocks, one after the other. Throws where the kernel breaks a rule.
template <typename Parameters>
void launch(void (*kernel)(Parameters), const Parameters& parameters, unsigned blocks, int threads, size_t shared,
            unsigned seed) {
  struct Call {
    void (*kernel)(Parameters);
    const Parameters& parameters;
  } call{kernel, parameters};
  gridDim.x = blocks;
  for (unsigned i = 0; i < blocks; ++i) {
    Block state;
    block = &state;
    state.shared.assign(shared, 0xff);
    state.unfenced_by.assign(shared / 16 + 1, 0);
    state.random.seed(seed * 7919 + i);
    state.body = [](void* data) { static_cast<Call*>(data)->kernel(static_cast<Call*>(data)->parameters); };
    state.body_data = &call;
    blockIdx.x = i;
    run_block(threads);
  }
}

inline float bf16_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

inline uint16_t float_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline float half_to_float(uint16_t bits) {
  _Float16 x;
  std::memcpy(&x, &bits, 2);
  return x;
}

inline uint16_t float_to_half(float x) {
  const _Float16 narrow = x;
  uint16_t bits;
  std::memcpy(&bits, &narrow, 2);
  return bits;
}

template <typename T>
float wide(uint16_t bits);
template <>
inline float wide<Bf16>(uint16_t bits) { return bf16_to_float(bits); }
template <>
inline float wide<Half>(uint16_t bits) { return half_to_float(bits); }

template <typename T>
uint16_t narrow(float x);
template <>
inline uint16_t narrow<Bf16>(float x) { return float_to_bf16(x); }
template <>
inline uint16_t narrow<Half>(float x) { return float_to_half(x); }

}  // namespace emulator
}  // namespace worldenv::cuda

#include "emulated_ptx.h"
