// CPU face of worldenv::conv_int8; worldenv/ops/conv_int8.py says what it means.
// One image at a time: its levels, with a border, stay in the cache of a core.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "conv.h"
#include "packed.h"

namespace worldenv::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

WORLDENV_DOT_FACES(convolve, (const Conv& conv, const Image& image, uint8_t* room), (conv, image, room))

// The images of a batch, given the first.
void run_all(const Conv& conv, const Image& first, int64_t batch) {
  const int64_t size = conv.height * conv.width * conv.channels;
  const int64_t result = conv.lines() * conv.count() * conv.layer.outputs;
  const Function run_one = function();
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> room(conv.room(), uint8_t(conv.zero));
    for (int64_t b = begin; b < end; ++b) {
      Image image = first;
      if (image.levels) image.levels += b * size;
      else image.numbers += b * size;
      if (image.onto) image.onto += b * result;
      if (image.to_levels) image.to_levels += b * result;
      else image.to += b * result;
      run_one(conv, image, room.data());
    }
  });
}

}  // namespace

Tensor conv_int8(
    const Tensor& x_any,  // [B, H, W, I] float32, or uint8 on the grid
    const Tensor& weights, const Tensor& affine, double step, int64_t zero,
    int64_t outputs,
    int64_t stride,
    bool relu,
    const std::optional<Tensor>& onto_any,  // [B, ceil(H / stride), ceil(W / stride), outputs] float32
    double to_step, int64_t to_zero
) {                       // the same shape, float32, or uint8 if to_step > 0
  const bool levels = x_any.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(x_any.dim() == 4 && (levels || x_any.scalar_type() == ScalarType::Float),
                  "x should be float32 or uint8 [B, H, W, I]");
  check_grid(step, zero);
  if (to_step != 0.0) check_grid(to_step, to_zero);
  STD_TORCH_CHECK(stride > 0 && outputs > 0, "stride and outputs should be positive");
  STD_TORCH_CHECK(x_any.size(3) > 0 && x_any.size(3) % kFour == 0, "channels should be a positive multiple of 4");
  const Tensor x = torch::stable::contiguous(x_any);
  const Conv conv{x.size(1), x.size(2), x.size(3), stride, packed(weights, affine, x.size(3), outputs, 0),
                  float(step), float(zero), relu, float(to_step), float(to_zero)};
  const bool empty = !x.numel();
  Tensor y = torch::stable::new_empty(x, {x.size(0), conv.lines(), conv.count(), outputs},
                                      to_step > 0.0 ? ScalarType::Byte : ScalarType::Float);
  const std::optional<Tensor> onto = onto_any ? std::optional<Tensor>(torch::stable::contiguous(*onto_any)) : onto_any;
  STD_TORCH_CHECK(!onto || (onto->scalar_type() == ScalarType::Float && onto->numel() == y.numel()),
                  "onto should be float32, shaped as the result");
  run_all(conv,
          {levels ? x.const_data_ptr<uint8_t>() : nullptr, levels ? nullptr : x.const_data_ptr<float>(),
           onto ? onto->const_data_ptr<float>() : nullptr,
           to_step > 0.0 ? y.mutable_data_ptr<uint8_t>() : nullptr,
           to_step > 0.0 ? nullptr : y.mutable_data_ptr<float>()},
          empty ? 0 : x.size(0));
  return y;
}

}  // namespace worldenv::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(worldenv, m) {
  m.def(
      "conv_int8(Tensor x, Tensor weights, Tensor affine, float step, int zero, int outputs, int stride, bool relu, "
      "Tensor? onto, float to_step, int to_zero) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(worldenv, CPU, m) { m.impl("conv_int8", TORCH_BOX(&worldenv::cpu::conv_int8)); }
