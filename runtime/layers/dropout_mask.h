// The random mask of a dropout layer.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace torch {
namespace nn {
class Module;
}
}  // namespace torch

namespace thinwire {

// Which forward pass of a run this is. A mask depends on it and on the layer.
struct ForwardPass {
  std::uint64_t seed = 1;
  std::int64_t step = 0;  // attempted steps so far
  std::int64_t rank = 0;
  std::int64_t micro_batch = 0;  // within the step
};

// Tells every PhiloxDropout in `module`, itself included, which pass comes next. The trainer does
// so; in a loop of your own, call it before each forward pass of training.
void begin_forward(torch::nn::Module& module, const ForwardPass& pass);

// A tensor like `input`: 0 with probability `probability`, in [0, 1), else 1 / (1 - probability).
// Element i depends on seed, stream and i only: not on threads or on the device. On the CPU it is
// one pass over memory; elsewhere the same integers come from tensor operations there, some seventy
// passes.
at::Tensor dropout_mask(const at::Tensor& input, double probability, std::uint64_t seed,
                        std::uint64_t stream);

namespace detail {
// The same bits by tensor operations on the device of `input`, for devices on which we have no
// loop.
at::Tensor dropout_mask_by_operations(const at::Tensor& input, double probability,
                                      std::uint64_t seed, std::uint64_t stream);
}  // namespace detail

}  // namespace thinwire
