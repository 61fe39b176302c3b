// What every CUDA face needs of torch, over the stable ABI: the stream, and checks that say what to do.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>

namespace worldenv::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Vectors of 16 bytes: the start, and where only the batch may be strided, the step from one to the next.
inline bool is_aligned(const Tensor& tensor, bool strided = false) {
  const bool step = !strided || tensor.size(0) < 2 || tensor.stride(0) * int64_t(tensor.element_size()) % 16 == 0;
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0 && step;
}

inline const float* floats(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const float*>(tensor->const_data_ptr()) : nullptr;
}

inline int64_t batch_stride(const std::optional<Tensor>& tensor) { return tensor ? tensor->stride(0) : 0; }

}  // namespace worldenv::cuda
