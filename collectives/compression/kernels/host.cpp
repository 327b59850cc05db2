// The kernels on the host, compiled once per kind of vectors; the machine's best are found when the
// program runs.
#include "collectives/compression/kernels/host.h"

#include <type_traits>
#include <utility>

#include "collectives/compression/kernels/kernels.h"

// Enough of them: newer ones would add nothing to these loops.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "collectives/compression/kernels/host.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// After them, as they are included once per target.
#include "collectives/compression/kernels/host_kernels-inl.h"

#if HWY_ONCE
namespace thinwire {

template <typename T>
std::vector<NamedKernels<T>> host_kernels_by_form() {
  const std::int64_t here = hwy::SupportedTargets();
  std::vector<NamedKernels<T>> found;
#if HWY_TARGETS & HWY_AVX3
  if ((here & HWY_AVX3) != 0) {
    N_AVX3::add_forms("avx512", found);
    if constexpr (std::is_same_v<T, float>) {
      for (NamedKernels<T>& form : whole_store_kernels()) found.push_back(std::move(form));
    }
  }
#endif
#if HWY_TARGETS & HWY_AVX2
  if ((here & HWY_AVX2) != 0) N_AVX2::add_forms("avx2", found);
#endif
  for (NamedKernels<T>& form : plain_kernels<T>()) found.push_back(std::move(form));
  return found;
}

template <typename T>
Kernels<T> host_kernels() {
  return host_kernels_by_form<T>().front().kernels;
}

template std::vector<NamedKernels<float>> host_kernels_by_form<float>();
template std::vector<NamedKernels<double>> host_kernels_by_form<double>();
template Kernels<float> host_kernels<float>();
template Kernels<double> host_kernels<double>();

}  // namespace thinwire
#endif
