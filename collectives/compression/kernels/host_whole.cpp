// The kernels of host.cpp for AVX-512 with stores of whole vectors: other bits of code, the same
// results. In a file of its own, which is compiled beside the other.
#define THINWIRE_WHOLE_STORES
#include "collectives/compression/kernels/host.h"

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX2 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "collectives/compression/kernels/host_whole.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// After them, as they are included once per target.
#include "collectives/compression/kernels/host_kernels-inl.h"

#if HWY_ONCE
namespace thinwire {

std::vector<NamedKernels<float>> whole_store_kernels() {
  std::vector<NamedKernels<float>> found;
#if HWY_TARGETS & HWY_AVX3
  if ((hwy::SupportedTargets() & HWY_AVX3) != 0) {
    N_AVX3::whole_stores::add_forms("avx512-whole", found);
  }
#endif
  return found;
}

}  // namespace thinwire
#endif
