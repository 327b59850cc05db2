#include "optimizers/kernels/bodies.h"
#include "optimizers/kernels/kernels.h"

namespace thinwire {
namespace {

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

template <typename T>
void squared_norm(const SquaredNormArgs<T>& args, StreamHandle) {
  for (std::int64_t b = 0; b < args.block_count; ++b) {
    const NormBlock& block = args.blocks[b];
    args.block_sums[b] = bodies::squared_sum<HostWarp>(args.values + block.begin, block.count);
  }
  *args.result = bodies::sum_of_blocks<HostWarp>(args.block_sums, args.block_count);
}

}  // namespace

template <typename T>
OptimizerKernels<T> host_optimizer_kernels() {
  return {sgd<T>, adam<T>, squared_norm<T>};
}

template OptimizerKernels<float> host_optimizer_kernels<float>();
template OptimizerKernels<double> host_optimizer_kernels<double>();

}  // namespace thinwire
