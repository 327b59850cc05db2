// Every form of the host's kernels that this machine has: kinds of vectors, and ways of storing.
#pragma once

#include <string>
#include <vector>

#include "collectives/compression/kernels/kernels.h"

namespace thinwire {

template <typename T>
struct NamedKernels {
  // The vectors, "plain" where the machine's best are no others; "whole": vectors of 64 bytes are
  // not stored in halves; "past-cache": what is decoded is stored past the cache.
  std::string form;  // "avx512", "avx2-past-cache", ...
  Kernels<T> kernels;
};

// All with equal bits; `host_kernels` is the first. The last ones run on every machine of this
// kind.
template <typename T>
std::vector<NamedKernels<T>> host_kernels_by_form();

// Those that store whole vectors of 64 bytes, of float only, as they take half a minute to compile;
// none where the machine has no such vectors.
std::vector<NamedKernels<float>> whole_store_kernels();

// Those of the vectors that every machine of this kind has; none where they are the others'.
template <typename T>
std::vector<NamedKernels<T>> plain_kernels();

extern template std::vector<NamedKernels<float>> plain_kernels<float>();
extern template std::vector<NamedKernels<double>> plain_kernels<double>();
extern template std::vector<NamedKernels<float>> host_kernels_by_form<float>();
extern template std::vector<NamedKernels<double>> host_kernels_by_form<double>();

}  // namespace thinwire
