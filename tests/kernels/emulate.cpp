// The kernels of csrc/cuda on the emulator, for ctypes: pointers and numbers in the order of the kernel's parameters.
// Each function returns the error's message, or null.
#include "../../csrc/cuda/rope_cache_write.h"
#include "../../csrc/cuda/windowed_attention.h"
#include "../../csrc/cuda/windowed_attention_sm90.h"

namespace worldenv::cuda {
namespace {

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

template <typename T, typename Ring>
void rope_of(int d, const RopeCacheWrite& p, unsigned seed) {
  const unsigned blocks = (p.batch * p.tokens + kTokensPerBlock - 1) / kTokensPerBlock;
  const auto kernel = d == 64 ? rope_cache_write_kernel<T, Ring, 64> : rope_cache_write_kernel<T, Ring, 128>;
  emulator::launch(kernel, p, blocks, kTokensPerBlock * kWarp, 0, seed);
}

template <typename T>
void rope_of(bool int8, int d, const RopeCacheWrite& p, unsigned seed) {
  int8 ? rope_of<T, int8_t>(d, p, seed) : rope_of<T, T>(d, p, seed);
}

template <typename T, typename Ring, int D>
void attention_of(const WindowedAttention& p, unsigned seed) {
  const int rows = p.tokens * (p.query_heads / p.key_heads);
  const unsigned blocks = (rows + kRows - 1) / kRows * p.key_heads * p.batch;
  emulator::launch(windowed_attention_kernel<T, Ring, D>, p, blocks, kThreads, shared_bytes<Ring, D>(), seed);
}

template <typename T>
void attention_of(bool int8, int d, const WindowedAttention& p, unsigned seed) {
  if (d == 64)
    int8 ? attention_of<T, int8_t, 64>(p, seed) : attention_of<T, T, 64>(p, seed);
  else
    int8 ? attention_of<T, int8_t, 128>(p, seed) : attention_of<T, T, 128>(p, seed);
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
    switch (type[0]) {
      case 'f': return rope_of<float>(int8, d, p, seed);
      case 'b': return rope_of<Bf16>(int8, d, p, seed);
      default: return rope_of<Half>(int8, d, p, seed);
    }
  });
}

extern "C" const char* windowed_attention(const char* type, int int8, int d, void** at, const int64_t* n,
                                          unsigned seed) {
  return guarded([&] {
    const WindowedAttention p{at[0], at[1], at[2], static_cast<int32_t*>(at[3]), static_cast<float*>(at[4]),
                              static_cast<float*>(at[5]), at[6], n[0], n[1], n[2], n[3], int(n[4]), int(n[5]),
                              int(n[6]), int(n[7]), int(n[8]), 1.44269504f / std::sqrt(float(d))};
    type[0] == 'b' ? attention_of<Bf16>(int8, d, p, seed) : attention_of<Half>(int8, d, p, seed);
  });
}
