// What optimizers and clipping do to memory, as plain functions over pointers: one instance runs on
// the host, one on a GPU, with equal bits. The rules for pointers and streams are those of
// collectives/compression/kernels/kernels.h.
#pragma once

#include <cstdint>

#include "collectives/stream.h"

namespace thinwire {

// One slice that moves. A table has them by rising offset and changes only when a slice freezes or
// thaws: what changes in every step comes beside it.
struct StepSlice {
  std::int64_t offset = 0;  // elements from the bucket's start
  std::int64_t numel = 0;
  double weight_decay = 0;
  double lr_scale = 1;
};

// The numbers of one SGD step that all slices share.
struct SgdStep {
  double lr = 0;
  double gradient_scale = 1;
  // buf = momentum buf + take d; the direction is `direct` d + `buffered` buf.
  double momentum = 0;
  double take = 1;
  double direct = 0;
  double buffered = 1;
};

// Sgd's update of a bucket (optimizers/sgd.h).
template <typename T>
struct SgdArgs {
  const StepSlice* slices = nullptr;
  std::int64_t slice_count = 0;
  std::int64_t numel = 0;  // of the bucket: every slice ends at or before it
  T* weights = nullptr;
  const T* gradient = nullptr;
  T* momentum = nullptr;  // null: plain SGD
  SgdStep step;
};

enum class WeightDecay : std::int32_t {
  coupled,    // Adam: added to the gradient
  decoupled,  // AdamW: the weights shrink by 1 - lr * weight_decay before the update
};

// The numbers of one Adam step that all slices share.
struct AdamStep {
  double lr = 0;
  double gradient_scale = 1;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  WeightDecay decay = WeightDecay::coupled;
  double bias1 = 1;       // 1 - beta1^t
  double sqrt_bias2 = 1;  // sqrt(1 - beta2^t)
};

// Adam's update of a bucket (optimizers/adam.h).
template <typename T>
struct AdamArgs {
  const StepSlice* slices = nullptr;
  std::int64_t slice_count = 0;
  std::int64_t numel = 0;  // of the bucket: every slice ends at or before it
  T* weights = nullptr;
  const T* gradient = nullptr;
  T* exp_avg = nullptr;
  T* exp_avg_sq = nullptr;
  T* max_exp_avg_sq = nullptr;  // null: no amsgrad
  AdamStep step;
};

// At most 1024 consecutive elements whose squares are summed together.
struct NormBlock {
  std::int64_t begin = 0;  // elements from the bucket's start
  std::int32_t count = 0;
};
constexpr std::int32_t norm_block = 1024;

// *result := the sum of the squares of all blocks' values, in double. Within a block element i goes
// to lane i % 32, then block b goes to lane b % 32; both times the lanes are folded,
// lane += lane + width for width 16, 8, 4, 2, 1.
template <typename T>
struct SquaredNormArgs {
  const NormBlock* blocks = nullptr;
  std::int64_t block_count = 0;  // may be 0
  const T* values = nullptr;     // the bucket's
  double* block_sums = nullptr;  // scratch, one per block
  double* result = nullptr;
};

// One instance of every kernel; T is float or double.
template <typename T>
struct OptimizerKernels {
  void (*sgd)(const SgdArgs<T>& args, StreamHandle stream);
  void (*adam)(const AdamArgs<T>& args, StreamHandle stream);
  void (*squared_norm)(const SquaredNormArgs<T>& args, StreamHandle stream);
};

// Runs at once, in the calling thread.
template <typename T>
OptimizerKernels<T> host_optimizer_kernels();

// Queues on the stream; throws `Error` when a launch fails. Only in builds with CUDA, in the
// library thinwire::cuda_kernels.
template <typename T>
OptimizerKernels<T> cuda_optimizer_kernels();

extern template OptimizerKernels<float> host_optimizer_kernels<float>();
extern template OptimizerKernels<double> host_optimizer_kernels<double>();
extern template OptimizerKernels<float> cuda_optimizer_kernels<float>();
extern template OptimizerKernels<double> cuda_optimizer_kernels<double>();

}  // namespace thinwire
