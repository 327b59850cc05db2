// The loops on the host, compiled once per kind of vectors; the machine's best are found when the
// program runs.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optimizers/kernels/host.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "optimizers/kernels/bodies.h"
#include "optimizers/kernels/host.h"
#include "optimizers/kernels/kernels.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire::HWY_NAMESPACE {

template <typename T>
void sgd_slice_plain(const SgdArgs<T>& args, const StepSlice& slice) {
  const bodies::SgdNumbers<T> numbers = bodies::sgd_numbers<T>(args.step, slice);
  T* weights = args.weights + slice.offset;
  const T* gradient = args.gradient + slice.offset;
  for (std::int64_t i = 0; i < slice.numel; ++i) {
    bodies::sgd_plain(weights[i], gradient[i], numbers);
  }
}

template <typename T>
void sgd_slice_momentum(const SgdArgs<T>& args, const StepSlice& slice) {
  const bodies::SgdNumbers<T> numbers = bodies::sgd_numbers<T>(args.step, slice);
  T* weights = args.weights + slice.offset;
  T* momentum = args.momentum + slice.offset;
  const T* gradient = args.gradient + slice.offset;
  for (std::int64_t i = 0; i < slice.numel; ++i) {
    bodies::sgd_momentum(weights[i], momentum[i], gradient[i], numbers);
  }
}

template <typename T>
void sgd(const SgdArgs<T>& args, StreamHandle) {
  for (std::int64_t s = 0; s < args.slice_count; ++s) {
    if (args.momentum != nullptr) {
      sgd_slice_momentum(args, args.slices[s]);
    } else {
      sgd_slice_plain(args, args.slices[s]);
    }
  }
}

template <typename T>
void adam_slice_plain(const AdamArgs<T>& args, const StepSlice& slice) {
  const bodies::AdamNumbers<T> numbers = bodies::adam_numbers<T>(args.step, slice);
  T* weights = args.weights + slice.offset;
  T* exp_avg = args.exp_avg + slice.offset;
  T* exp_avg_sq = args.exp_avg_sq + slice.offset;
  const T* gradient = args.gradient + slice.offset;
  for (std::int64_t i = 0; i < slice.numel; ++i) {
    bodies::adam_plain(weights[i], exp_avg[i], exp_avg_sq[i], gradient[i], numbers);
  }
}

template <typename T>
void adam_slice_amsgrad(const AdamArgs<T>& args, const StepSlice& slice) {
  const bodies::AdamNumbers<T> numbers = bodies::adam_numbers<T>(args.step, slice);
  T* weights = args.weights + slice.offset;
  T* exp_avg = args.exp_avg + slice.offset;
  T* exp_avg_sq = args.exp_avg_sq + slice.offset;
  T* max_exp_avg_sq = args.max_exp_avg_sq + slice.offset;
  const T* gradient = args.gradient + slice.offset;
  for (std::int64_t i = 0; i < slice.numel; ++i) {
    bodies::adam_amsgrad(weights[i], exp_avg[i], exp_avg_sq[i], max_exp_avg_sq[i], gradient[i],
                         numbers);
  }
}

template <typename T>
void adam(const AdamArgs<T>& args, StreamHandle) {
  for (std::int64_t s = 0; s < args.slice_count; ++s) {
    if (args.max_exp_avg_sq != nullptr) {
      adam_slice_amsgrad(args, args.slices[s]);
    } else {
      adam_slice_plain(args, args.slices[s]);
    }
  }
}

// In one piece with what it calls, which was not compiled for these vectors.
template <typename T>
__attribute__((flatten)) void squared_norm(const SquaredNormArgs<T>& args, StreamHandle) {
  for (std::int64_t b = 0; b < args.block_count; ++b) {
    const NormBlock& block = args.blocks[b];
    args.block_sums[b] = bodies::squared_sum<HostWarp>(args.values + block.begin, block.count);
  }
  *args.result = bodies::sum_of_blocks<HostWarp>(args.block_sums, args.block_count);
}

template <typename T>
OptimizerKernels<T> optimizer_kernels() {
  return {sgd<T>, adam<T>, squared_norm<T>};
}

}  // namespace thinwire::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thinwire {

template <typename T>
std::vector<NamedOptimizerKernels<T>> host_optimizer_kernels_by_target() {
  const std::int64_t here = hwy::SupportedTargets();
  std::vector<NamedOptimizerKernels<T>> found;
#if HWY_TARGETS & HWY_AVX3
  if ((here & HWY_AVX3) != 0) found.push_back({"AVX-512", N_AVX3::optimizer_kernels<T>()});
#endif
#if HWY_TARGETS & HWY_AVX2
  if ((here & HWY_AVX2) != 0) found.push_back({"AVX2", N_AVX2::optimizer_kernels<T>()});
#endif
#if HWY_STATIC_TARGET != HWY_AVX3 && HWY_STATIC_TARGET != HWY_AVX2
  found.push_back(
      {hwy::TargetName(HWY_STATIC_TARGET), HWY_STATIC_DISPATCH(optimizer_kernels<T>)()});
#endif
  return found;
}

template <typename T>
OptimizerKernels<T> host_optimizer_kernels() {
  return host_optimizer_kernels_by_target<T>().front().kernels;
}

template std::vector<NamedOptimizerKernels<float>> host_optimizer_kernels_by_target<float>();
template std::vector<NamedOptimizerKernels<double>> host_optimizer_kernels_by_target<double>();
template OptimizerKernels<float> host_optimizer_kernels<float>();
template OptimizerKernels<double> host_optimizer_kernels<double>();

}  // namespace thinwire
#endif
