// In which type a forward pass computes.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace thinwire {

enum class Precision {
  fp32,  // whatever the parameters are
  bf16,  // matrix products and convolutions in bfloat16, sums and norms in float32
};

// "fp32" | "bf16". Throws UsageError for another word.
Precision parse_precision(const std::string& text);

// While this object lives, operations of this thread on `device` compute in `precision` (libtorch's
// autocast). Parameters and their gradients keep their type. The backward pass needs no such scope.
class ComputeIn {
 public:
  ComputeIn(Precision precision, at::DeviceType device);
  ~ComputeIn();
  ComputeIn(const ComputeIn&) = delete;
  ComputeIn& operator=(const ComputeIn&) = delete;

 private:
  at::DeviceType device_;
  bool enabled_before_;
  at::ScalarType dtype_before_;
};

}  // namespace thinwire
