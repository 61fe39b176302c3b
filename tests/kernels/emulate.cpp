// The kernels of csrc/cuda on the emulator, for ctypes: pointers and numbers in the order of the kernel's parameters.
// Each function returns the error's message, or null.
#include "../../csrc/cuda/rope_cache_write.h"
#include "../../csrc/cuda/windowed_attention.h"
#include "../../csrc/cuda/windowed_attention_sm90.h"

namespace worldenv::cuda {
namespace {

#ifdef WORLDENV_EMULATE_FEW  // heads of 64 numbers of one type only, which compiles faster
constexpr bool kFew = true;
#else
constexpr bool kFew = false;
#endif

std::string message;

template <typename Work>
const char* guarded(Work work) {
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

template <typename T, int D>
void rope_of(bool int8, const RopeCacheWrite& p, unsigned seed) {
  const unsigned blocks = (p.batch * p.tokens + kTokensPerBlock - 1) / kTokensPerBlock;
  const auto kernel = int8 ? rope_cache_write_kernel<T, int8_t, D> : rope_cache_write_kernel<T, T, D>;
  emulator::launch(kernel, p, blocks, kTokensPerBlock * kWarp, 0, seed);
}

template <typename T>
void rope_of(bool int8, int d, const RopeCacheWrite& p, unsigned seed) {
  if (d == 64) return rope_of<T, 64>(int8, p, seed);
  if constexpr (!kFew) return rope_of<T, 128>(int8, p, seed);
}

// Which of the kernels, and so many blocks for the one whose blocks stay.
struct Hopper {
  bool wanted;
  unsigned blocks;
};

template <typename T, typename Ring, int D>
void attention_of(const WindowedAttention& p, Hopper hopper, unsigned seed) {
  const int rows = p.tokens * (p.query_heads / p.key_heads);
  const unsigned blocks = (rows + kRows - 1) / kRows * p.key_heads * p.batch;
  if (hopper.wanted)
    emulator::launch(windowed_attention_hopper_kernel<T, Ring, D>, p, hopper.blocks, kHopperThreads,
                     HopperShared<Ring, D>::kBytes, seed);
  else
    emulator::launch(windowed_attention_kernel<T, Ring, D>, p, blocks, kThreads, shared_bytes<Ring, D>(), seed);
}

template <typename T>
void attention_of(bool int8, int d, const WindowedAttention& p, Hopper hopper, unsigned seed) {
  if (d == 64) return int8 ? attention_of<T, int8_t, 64>(p, hopper, seed) : attention_of<T, T, 64>(p, hopper, seed);
  if constexpr (!kFew)
    int8 ? attention_of<T, int8_t, 128>(p, hopper, seed) : attention_of<T, T, 128>(p, hopper, seed);
}

const char* attention(const char* type, int int8, int d, void** at, const int64_t* n, Hopper hopper, unsigned seed) {
  return guarded([&] {
    const WindowedAttention p{at[0], at[1], at[2], static_cast<int32_t*>(at[3]), static_cast<float*>(at[4]),
                              static_cast<float*>(at[5]), at[6], n[0], n[1], n[2], n[3], int(n[4]), int(n[5]),
                              int(n[6]), int(n[7]), int(n[8]), 1.44269504f / std::sqrt(float(d))};
    if (type[0] == 'b') return attention_of<Bf16>(int8, d, p, hopper, seed);
    if constexpr (!kFew) attention_of<Half>(int8, d, p, hopper, seed);
  });
}

}  // namespace
}  // namespace worldenv::cuda

using namespace worldenv::cuda;

extern "C" const char* rope_cache_write(const char* type, int int8, int d, void** at, const int64_t* n, unsigned seed) {
  return guarded([&] {
    const RopeCacheWrite p{
        at[0], static_cast<float*>(at[1]), static_cast<float*>(at[2]), static_cast<int32_t*>(at[3]),
        static_cast<int32_t*>(at[4]), static_cast<float*>(at[5]), static_cast<float*>(at[6]), at[7], at[8],
        static_cast<float*>(at[9]), static_cast<float*>(at[10]), at[11], n[0], n[1], n[2], n[3], n[4], int(n[5]),
        int(n[6]), int(n[7]), int(n[8]), int(n[9])};
    if (type[0] == 'b') return rope_of<Bf16>(int8, d, p, seed);
    if constexpr (!kFew) type[0] == 'f' ? rope_of<float>(int8, d, p, seed) : rope_of<Half>(int8, d, p, seed);
  });
}

extern "C" const char* windowed_attention(const char* type, int int8, int d, void** at, const int64_t* n,
                                          unsigned seed) {
  return attention(type, int8, d, at, n, {false, 0}, seed);
}

extern "C" const char* windowed_attention_hopper(const char* type, int int8, int d, void** at, const int64_t* n,
                                                 unsigned seed) {
  return attention(type, int8, d, at, n, {true, 2}, seed);
}
