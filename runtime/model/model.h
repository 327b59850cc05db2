// What is trained.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

namespace torch {
namespace nn {
class Module;
}
}  // namespace torch

namespace thinwire {

// A libtorch module and its forward pass, which `torch::nn::Module` itself does not have.
struct Model {
  std::shared_ptr<torch::nn::Module> module;
  // Batch [n, ...] to logits [n, classes], or [n, targets, classes] where a sample has many
  // targets. Refers to `module` and keeps it alive. Whether it trains or evaluates is the module's
  // mode; what a training pass draws at random comes from `begin_forward`
  // (runtime/layers/dropout_mask.h).
  std::function<at::Tensor(const at::Tensor&)> forward;
};

}  // namespace thinwire
