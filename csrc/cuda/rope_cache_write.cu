#include "rope_cache_write.h"

#include "torch.h"

namespace worldenv::cuda {

using Kernel = void (*)(RopeCacheWrite);

template <typename T>
Kernel kernel_of(bool int8, int64_t d) {
  switch (d) {
    case 64: return int8 ? rope_cache_write_kernel<T, int8_t, 64> : rope_cache_write_kernel<T, T, 64>;
    case 128: return int8 ? rope_cache_write_kernel<T, int8_t, 128> : rope_cache_write_kernel<T, T, 128>;
    default: return nullptr;
  }
}

Kernel kernel_of(ScalarType type, bool int8, int64_t d) {
  switch (type) {
    case ScalarType::Float: return kernel_of<float>(int8, d);
    case ScalarType::BFloat16: return kernel_of<Bf16>(int8, d);
    case ScalarType::Half: return kernel_of<Half>(int8, d);
    default: return nullptr;
  }
}

Tensor rope_cache_write(
    const Tensor& qkv_any,           // [B, M, (H + 2 G) D] float32, bfloat16 or float16
    const Tensor& query_gain_any,    // [D] float32
    const Tensor& key_gain_any,      // [D] float32
    const Tensor& frame_any,         // [B] int32
    const Tensor& place_any,         // [B] int32
    const Tensor& time_angle_any,    // [D / 2] float32
    const Tensor& space_angle_any,   // [L, D / 2] float32
    Tensor keys,                     // [B, G, C, D] as qkv, or int8; the batch may be strided; written
    Tensor values,                   // [B, G, C, D] likewise
    std::optional<Tensor> key_scale,   // [B, G, C] float32 with int8; written
    std::optional<Tensor> value_scale  // [B, G, C] float32
) {                                    // [B, M, H, D]
  const int64_t batch = qkv_any.size(0), tokens = qkv_any.size(1), key_heads = keys.size(1);
  const int64_t capacity = keys.size(2), d = keys.size(3), query_heads = qkv_any.size(2) / d - 2 * key_heads;
  const bool int8 = keys.scalar_type() == ScalarType::Char;
  const Kernel kernel = kernel_of(qkv_any.scalar_type(), int8, d);
  STD_TORCH_CHECK(kernel, "rope_cache_write: a head has ", d, " numbers; the CUDA face takes 64 or 128 of "
                  "float32, bfloat16 or float16. Set WORLDENV_BACKEND=triton for others");
  STD_TORCH_CHECK(int8 == key_scale.has_value() && int8 == value_scale.has_value(),
                  "rope_cache_write: key_scale and value_scale are given with int8 keys and values, and only then");
  STD_TORCH_CHECK(is_aligned(keys, true) && is_aligned(values, true),
                  "rope_cache_write: an episode of keys or values does not start at a multiple of 16 bytes; "
                  "pass whole rings, or set WORLDENV_BACKEND=triton");

  const torch::stable::accelerator::DeviceGuard guard(qkv_any.get_device_index());
  const Tensor qkv = torch::stable::contiguous(qkv_any);
  STD_TORCH_CHECK(is_aligned(qkv), "rope_cache_write: qkv does not start at a multiple of 16 bytes; pass qkv.clone()");
  const Tensor query_gain = torch::stable::contiguous(query_gain_any);
  const Tensor key_gain = torch::stable::contiguous(key_gain_any);
  const Tensor frame = torch::stable::contiguous(frame_any), place = torch::stable::contiguous(place_any);
  const Tensor time_angle = torch::stable::contiguous(time_angle_any);
  const Tensor space_angle = torch::stable::contiguous(space_angle_any);
  for (const Tensor* angles : {&query_gain, &key_gain, &time_angle, &space_angle})
    STD_TORCH_CHECK(is_aligned(*angles), "rope_cache_write: query_gain, key_gain, time_angle and space_angle should "
                    "start at multiples of 16 bytes; pass clones");
  Tensor query = torch::stable::new_empty(qkv, {batch, tokens, query_heads, d});
  const int64_t blocks = (batch * tokens + kTokensPerBlock - 1) / kTokensPerBlock;
  if (blocks == 0) return query;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "rope_cache_write: ", batch, " * ", tokens, " tokens are too many");

  const RopeCacheWrite p{
      qkv.const_data_ptr(), static_cast<const float*>(query_gain.const_data_ptr()),
      static_cast<const float*>(key_gain.const_data_ptr()), static_cast<const int32_t*>(frame.const_data_ptr()),
      static_cast<const int32_t*>(place.const_data_ptr()), static_cast<const float*>(time_angle.const_data_ptr()),
      static_cast<const float*>(space_angle.const_data_ptr()), keys.mutable_data_ptr(), values.mutable_data_ptr(),
      int8 ? static_cast<float*>(key_scale->mutable_data_ptr()) : nullptr,
      int8 ? static_cast<float*>(value_scale->mutable_data_ptr()) : nullptr, query.mutable_data_ptr(), keys.stride(0),
      values.stride(0), batch_stride(key_scale), batch_stride(value_scale), batch, static_cast<int>(tokens),
      static_cast<int>(query_heads), static_cast<int>(key_heads), static_cast<int>(capacity),
      static_cast<int>(space_angle.size(0))};
  kernel<<<static_cast<unsigned>(blocks), kTokensPerBlock * kWarp, 0, current_stream(qkv)>>>(p);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return query;
}

}  // namespace worldenv::cuda

STABLE_TORCH_LIBRARY_IMPL(worldenv, CUDA, m) {
  m.impl("rope_cache_write", TORCH_BOX(&worldenv::cuda::rope_cache_write));
}
