// Tensors of a layer in 8 bits, checked; worldenv/packed.py lays them out.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>

#include "dot.h"

namespace worldenv::cpu {

inline void check(bool right, const char* message) { STD_TORCH_CHECK(right, message); }

inline void check_grid(double step, int64_t zero) {
  check(step > 0.0 && std::isnormal(static_cast<float>(step)) && zero >= 0 && zero <= 255,
        "step should be positive, as float32, and zero in [0, 255]");
}

// The numbers of a float32 tensor [count], or [b, count] if b is not 0.
inline const float* numbers(const torch::stable::Tensor& tensor, int64_t b, int64_t count, const char* message) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous(), message);
  STD_TORCH_CHECK(b ? tensor.dim() == 2 && tensor.size(0) == b && tensor.size(1) == count
                    : tensor.dim() == 1 && tensor.size(0) == count, message);
  return tensor.const_data_ptr<float>();
}

// `rows` of the window, or 0 for any odd number of them.
inline Packed packed(const torch::stable::Tensor& weights, const torch::stable::Tensor& affine, int64_t inputs,
                     int64_t outputs, int64_t rows) {
  using torch::headeronly::ScalarType;
  const int64_t blocks = (outputs + kLanes - 1) / kLanes;
  STD_TORCH_CHECK(weights.dim() == 5 && weights.scalar_type() == ScalarType::Char && weights.is_contiguous() &&
                      weights.size(0) == blocks && (rows ? weights.size(1) == rows : weights.size(1) % 2 == 1) &&
                      weights.size(2) * kFour == weights.size(1) * inputs && weights.size(3) == kLanes &&
                      weights.size(4) == kFour,
                  "weights should be contiguous int8 [ceil(O / 16), rows, rows * I / 4, 16, 4], rows odd, or 1 of a "
                  "linear layer");
  STD_TORCH_CHECK(affine.dim() == 2 && affine.scalar_type() == ScalarType::Float && affine.is_contiguous() &&
                      affine.size(0) == 2 && affine.size(1) == blocks * kLanes,
                  "affine should be contiguous float32 [2, ceil(O / 16) * 16]");
  return {weights.const_data_ptr<int8_t>(), affine.const_data_ptr<float>(), outputs, weights.size(1),
          weights.size(2) * kFour};
}

}  // namespace worldenv::cpu
