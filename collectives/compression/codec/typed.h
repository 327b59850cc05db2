// One place where a tensor's dtype becomes a C++ type.
#pragma once

#include <ATen/core/Tensor.h>

#include "collectives/base/error.h"

namespace thinwire {

// Calls `body(T{})` with T float or double.
template <typename Body>
auto with_type(at::ScalarType dtype, Body body) {
  if (dtype == at::kDouble) return body(double{});
  check(dtype == at::kFloat, "gradients are float32 or float64");
  return body(float{});
}

}  // namespace thinwire
