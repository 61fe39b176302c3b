// What the numbers of a tensor are in memory; the faces compute with floats.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace worldenv::cpu {

enum class Stored { kFloat32, kBFloat16, kFloat16, kInt8 };

inline Stored stored(const torch::stable::Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Stored::kFloat32;
    case ScalarType::BFloat16: return Stored::kBFloat16;
    case ScalarType::Half: return Stored::kFloat16;
    case ScalarType::Char: return Stored::kInt8;
    default: STD_TORCH_CHECK(false, "numbers should be float32, bfloat16, float16 or, in a ring, int8");
  }
}

inline int64_t size_of(Stored stored) {
  return stored == Stored::kFloat32 ? 4 : stored == Stored::kInt8 ? 1 : 2;
}

}  // namespace worldenv::cpu
