// The kernels of host.cpp for every machine that the compiler's flags allow. Where these say
// nothing of vectors, on x86-64, hardly a machine runs them: they are compiled with less care, as
// they would take longer than all others.
#define HWY_COMPILE_ONLY_STATIC
#include <hwy/highway.h>

#include "collectives/compression/kernels/host_kernels-inl.h"

namespace thinwire {

template <typename T>
std::vector<NamedKernels<T>> plain_kernels() {
  std::vector<NamedKernels<T>> found;
#if HWY_STATIC_TARGET != HWY_AVX3 && HWY_STATIC_TARGET != HWY_AVX2
  HWY_STATIC_DISPATCH(add_forms)("plain", found);
#endif
  return found;
}

template std::vector<NamedKernels<float>> plain_kernels<float>();
template std::vector<NamedKernels<double>> plain_kernels<double>();

}  // namespace thinwire
