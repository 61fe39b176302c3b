// CPU face of worldenv::denoise_step; worldenv/ops/denoise_step.py says what it means.
// The noise of a block is drawn where it is used and never stored.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

#include "philox.h"
#include "stored.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 14;  // numbers; a thread is not worth waking for less

struct Step {
  Counter counter;
  float t, t_next;
  const char *noisy, *velocity;  // of one episode
  char* out;
};

// Numbers begin .. end - 1 of an episode; begin is a multiple of a block of 4 * Width.
template <int Width, class T>
WORLDENV_INLINE void step(const Step& s, int64_t begin, int64_t end) {
  const T *noisy = reinterpret_cast<const T*>(s.noisy), *velocity = reinterpret_cast<const T*>(s.velocity);
  T* out = reinterpret_cast<T*>(s.out);
  alignas(64) float noise[4 * Width];
  for (int64_t i = begin; i < end; i += 4 * Width) {
    if (s.t_next) block<Width>(s.counter, uint32_t(i / 4), true, noise);
    for (int64_t c = i; c < std::min(i + 4 * Width, end); c += Width) {
      const int64_t lanes = end - c;
      Vector<Width> clean, other;
      clean.load(noisy + c, lanes);
      other.load(velocity + c, lanes);
      clean.v -= s.t * other.v;
      if (s.t_next) {
        other.load(noise + (c - i));
        clean.v = (1.0f - s.t_next) * clean.v + s.t_next * other.v;
      }
      clean.store(out + c, lanes);
    }
  }
}

using Function = void (*)(const Step&, int64_t, int64_t);

template <class T>
void step_plain(const Step& s, int64_t begin, int64_t end) { step<4, T>(s, begin, end); }
#if WORLDENV_X86
template <class T>
WORLDENV_AVX2 void step_avx2(const Step& s, int64_t begin, int64_t end) { step<8, T>(s, begin, end); }
template <class T>
WORLDENV_AVX512 void step_avx512(const Step& s, int64_t begin, int64_t end) { step<16, T>(s, begin, end); }
#endif

template <class T>
Function function() {
#if WORLDENV_X86
  if (isa() == Isa::kAvx512) return step_avx512<T>;
  if (isa() == Isa::kAvx2) return step_avx2<T>;
#endif
  return step_plain<T>;
}

Function function(Stored stored) {
  if (stored == Stored::kBFloat16) return function<BFloat16>();
  if (stored == Stored::kFloat16) return function<Float16>();
  return function<float>();
}

}  // namespace

Tensor denoise_step(
    const Tensor& noisy_any,     // [B, ...] float32, bfloat16, float16
    const Tensor& velocity_any,  // [B, ...]
    double t,
    double t_next,
    int64_t seed,
    const Tensor& episode_any,  // [B] int64
    const Tensor& chunk_any,    // [B] int64
    int64_t use
) {                             // [B, ...]
  STD_TORCH_CHECK(noisy_any.dim() > 0 && velocity_any.scalar_type() == noisy_any.scalar_type() &&
                      velocity_any.sizes().equals(noisy_any.sizes()),
                  "noisy and velocity should be [B, ...] of one dtype");
  for (const Tensor* tensor : {&episode_any, &chunk_any})
    STD_TORCH_CHECK(tensor->dim() == 1 && tensor->scalar_type() == ScalarType::Long &&
                        tensor->size(0) == noisy_any.size(0),
                    "episode and chunk should be int64 [B]");
  const Function some_numbers = function(stored(noisy_any));
  const Tensor noisy = torch::stable::contiguous(noisy_any), velocity = torch::stable::contiguous(velocity_any);
  const Tensor episode = torch::stable::contiguous(episode_any), chunk = torch::stable::contiguous(chunk_any);
  Tensor out = torch::stable::empty_like(noisy);
  if (!noisy.numel()) return out;
  const int64_t batch = noisy.size(0), count = noisy.numel() / batch, item = size_of(stored(noisy));
  STD_TORCH_CHECK(count / 4 < (int64_t(1) << 32), "an episode should have less than 2^34 numbers");
  const int64_t *episodes = episode.const_data_ptr<int64_t>(), *chunks = chunk.const_data_ptr<int64_t>();
  const char* from = static_cast<const char*>(noisy.data_ptr());
  const char* to_noise = static_cast<const char*>(velocity.data_ptr());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  const int64_t part = std::min(kGrain, count), parts = (count + kGrain - 1) / kGrain;  // kGrain: whole blocks
  torch::stable::parallel_for(0, batch * parts, std::max<int64_t>(1, kGrain / part), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / parts, first = i % parts * kGrain, at = b * count * item;
      some_numbers(Step{counter_of(seed, episodes[b], chunks[b], use), float(t), float(t_next), from + at,
                        to_noise + at, to + at},
                   first, std::min(first + kGrain, count));
    }
  });
  return out;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "denoise_step(Tensor noisy, Tensor velocity, float t, float t_next, int seed, Tensor episode, Tensor chunk, int "
      "use) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("denoise_step", TORCH_BOX(&worldenv::cpu::denoise_step)); }
