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
  // Batch [n, ...] to logits [n, classes]. Refers to `module` and keeps it alive.
  std::function<at::Tensor(const at::Tensor&)> forward;
};

}  // namespace thinwire
