// The optimizers' kernels of every kind of vectors that this machine has; for tests.
#pragma once

#include <string>
#include <vector>

#include "optimizers/kernels/kernels.h"

namespace thinwire {

template <typename T>
struct NamedOptimizerKernels {
  std::string target;  // "AVX-512", "AVX2", ...
  OptimizerKernels<T> kernels;
};

// All with equal bits; `host_optimizer_kernels` is the first.
template <typename T>
std::vector<NamedOptimizerKernels<T>> host_optimizer_kernels_by_target();

extern template std::vector<NamedOptimizerKernels<float>> host_optimizer_kernels_by_target<float>();
extern template std::vector<NamedOptimizerKernels<double>>
host_optimizer_kernels_by_target<double>();

}  // namespace thinwire
