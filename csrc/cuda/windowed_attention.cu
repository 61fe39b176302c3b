#include "windowed_attention.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "torch.h"
#include "windowed_attention_sm90.h"

namespace worldenv::cuda {

int attribute(cudaDeviceAttr name, const Tensor& on) {
  int value = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, on.get_device_index()));
  return value;
}

// Whether to take the kernel for Hopper: WORLDENV_WGMMA=1, read once. Its tests passed on a device; the engine has not
// run with it yet.
bool wants_wgmma(const Tensor& on) {
  static const bool wanted = [] {
    const char* value = std::getenv("WORLDENV_WGMMA");
    return value && !std::strcmp(value, "1");
  }();
  return wanted && attribute(cudaDevAttrComputeCapabilityMajor, on) == 9;
}

template <typename Kernel>
void launch(Kernel kernel, const WindowedAttention& p, int64_t blocks, int threads, int shared, cudaStream_t stream) {
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "windowed_attention: ", blocks, " blocks are too many");
  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(p);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T, typename Ring, int D>
void launch(const WindowedAttention& p, const Tensor& on) {
  const cudaStream_t stream = current_stream(on);
  static_assert(kRows == kHopperRows);
  const int64_t rows = int64_t(p.tokens) * (p.query_heads / p.key_heads);
  const int64_t works = (rows + kRows - 1) / kRows * p.key_heads * p.batch;
  if (wants_wgmma(on)) {
    const int64_t blocks = std::min<int64_t>(works, attribute(cudaDevAttrMultiProcessorCount, on));
    launch(windowed_attention_hopper_kernel<T, Ring, D>, p, blocks, kHopperThreads, HopperShared<Ring, D>::kBytes,
           stream);
  } else {
    launch(windowed_attention_kernel<T, Ring, D>, p, works, kThreads, shared_bytes<Ring, D>(), stream);
  }
}

template <typename T>
void launch(bool int8, int64_t d, const WindowedAttention& p, const Tensor& on) {
  if (d == 64)
    int8 ? launch<T, int8_t, 64>(p, on) : launch<T, T, 64>(p, on);
  else
    int8 ? launch<T, int8_t, 128>(p, on) : launch<T, T, 128>(p, on);
}

Tensor windowed_attention(
    const Tensor& query_any,                     // [B, M, H, D] bfloat16 or float16
    const Tensor& keys,                          // [B, G, C, D] as query, or int8; the batch may be strided
    const Tensor& values,                        // [B, G, C, D] likewise
    const Tensor& length_any,                    // [B] int32
    const std::optional<Tensor>& key_scale,      // [B, G, C] float32 with int8
    const std::optional<Tensor>& value_scale) {  // [B, G, C] float32
  const int64_t batch = query_any.size(0), tokens = query_any.size(1), query_heads = query_any.size(2);
  const int64_t d = query_any.size(3), key_heads = keys.size(1), capacity = keys.size(2);
  const ScalarType type = query_any.scalar_type();
  const bool int8 = keys.scalar_type() == ScalarType::Char;
  STD_TORCH_CHECK(type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "windowed_attention: the CUDA face takes queries in bfloat16 or float16, not float32; cast them, or "
                  "set WORLDENV_BACKEND=triton");
  STD_TORCH_CHECK(d == 64 || d == 128, "windowed_attention: a head has ", d, " numbers; the CUDA face takes 64 or 128. "
                  "Set WORLDENV_BACKEND=triton for others");
  STD_TORCH_CHECK(int8 == key_scale.has_value() && int8 == value_scale.has_value(),
                  "windowed_attention: key_scale and value_scale are given with int8 keys and values, and only then");
  STD_TORCH_CHECK(is_aligned(keys, true) && is_aligned(values, true),
                  "windowed_attention: an episode of keys or values does not start at a multiple of 16 bytes; "
                  "pass whole rings, or set WORLDENV_BACKEND=triton");
  STD_TORCH_CHECK(capacity * d < (int64_t(1) << 31), "windowed_attention: a ring of ", capacity, " tokens is too long");

  const torch::stable::accelerator::DeviceGuard guard(query_any.get_device_index());
  const Tensor query = torch::stable::contiguous(query_any), length = torch::stable::contiguous(length_any);
  STD_TORCH_CHECK(is_aligned(query), "windowed_attention: query does not start at a multiple of 16 bytes; pass "
                  "query.clone()");
  Tensor out = torch::stable::new_empty(query, {batch, tokens, query_heads, d});
  if (batch * tokens * query_heads == 0) return out;
  const WindowedAttention p{
      query.const_data_ptr(), keys.const_data_ptr(), values.const_data_ptr(),
      static_cast<const int32_t*>(length.const_data_ptr()), floats(key_scale), floats(value_scale),
      out.mutable_data_ptr(), keys.stride(0), values.stride(0), batch_stride(key_scale), batch_stride(value_scale),
      static_cast<int>(batch), static_cast<int>(tokens), static_cast<int>(query_heads), static_cast<int>(key_heads),
      static_cast<int>(capacity), static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(d)))};
  type == ScalarType::Half ? launch<Half>(int8, d, p, query) : launch<Bf16>(int8, d, p, query);
  return out;
}

}  // namespace worldenv::cuda

STABLE_TORCH_LIBRARY_IMPL(worldenv, CUDA, m) {
  m.impl("windowed_attention", TORCH_BOX(&worldenv::cuda::windowed_attention));
}
