// The kernels of every kind of vectors that this machine has; for tests.
#pragma once

#include <string>
#include <vector>

#include "collectives/compression/kernels/kernels.h"

namespace thinwire {

template <typename T>
struct NamedKernels {
  std::string target;  // "AVX-512", "AVX2", ...
  Kernels<T> kernels;
};

// All with equal bits; `host_kernels` is the first. The last one needs no vectors.
template <typename T>
std::vector<NamedKernels<T>> host_kernels_by_target();

extern template std::vector<NamedKernels<float>> host_kernels_by_target<float>();
extern template std::vector<NamedKernels<double>> host_kernels_by_target<double>();

}  // namespace thinwire
