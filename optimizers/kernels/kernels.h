// What optimizers and clipping do to memory, as plain functions over pointers: one instance runs on
// the host, one on a GPU, with equal bits. The rules for pointers and streams are those of
// collectives/compression/kernels/kernels.h.
#pragma once

#include <cstdint>
#include <tuple>
#include <utility>

#include "collectives/stream.h"
#include "optimizers/list.h"

namespace thinwire {

constexpr int max_states = 3;  // tensors that an optimizer keeps beside the weights

// What one update of a bucket, or of a part of it, reads and writes. No two tensors overlap.
template <typename T>
struct BucketView {
  const StepSlice* slices = nullptr;  // the slices that move, in the memory of the kernel
  std::int64_t slice_count = 0;
  std::int64_t numel = 0;  // of the bucket: every slice ends at or before it
  T* weights = nullptr;    // the fp32 master copy where the parameters have 16 bits
  const T* gradient = nullptr;
  T* state[max_states] = {};  // in the order of `Rule::state`
  int state_count = 0;
  int formula = 0;  // which of the optimizer's moves these slices
};

// At most 1024 consecutive elements whose squares are summed together.
struct NormBlock {
  std::int64_t begin = 0;  // elements from the bucket's start
  std::int32_t count = 0;
};
constexpr std::int32_t norm_block = 1024;

// *result := the sum of the squares of all blocks' values, in double. Within a block element i goes
// to lane i % 32, then block b goes to lane b % 32. Both times the lanes are folded:
// lane += lane + width for the widths 16, 8, 4, 2, 1.
template <typename T>
struct SquaredNormArgs {
  const NormBlock* blocks = nullptr;
  std::int64_t block_count = 0;  // may be 0
  const T* values = nullptr;     // the bucket's
  double* block_sums = nullptr;  // scratch, one per block
  double* result = nullptr;
};

// The update of a bucket by one rule (optimizers/rule.h). There are two arguments because the first
// changes with each tile of a coded gradient, and copying what was just written makes the host
// wait.
template <typename Rule, typename T>
using StepKernel = void (*)(const BucketView<T>& bucket, const typename Rule::Step& step,
                            const Executor& on);

template <typename T, typename... Rules>
std::tuple<StepKernel<Rules, T>...> step_kernels_of(RuleList<Rules...>);  // only its type is used

// One instance of every kernel; T is float or double.
template <typename T>
struct OptimizerKernels {
  decltype(step_kernels_of<T>(KernelRules{})) steps;
  void (*squared_norm)(const SquaredNormArgs<T>& args, const Executor& on);

  // The rule is one of the list.
  template <typename Rule>
  void step(const BucketView<T>& bucket, const typename Rule::Step& step,
            const Executor& on) const {
    std::get<StepKernel<Rule, T>>(steps)(bucket, step, on);
  }
};

template <typename Body, int... counts>
void with_states_of(int count, const Body& body, std::integer_sequence<int, counts...>) {
  (void)((count == counts && (body(std::make_integer_sequence<int, counts>{}), true)) || ...);
}

// Calls `body` with std::make_integer_sequence<int, state_count>{}: the indices of the rule's
// states, from which a kernel for so many of them is made.
template <typename Rule, typename Body>
void with_states(int state_count, const Body& body) {
  with_states_of(state_count, body, typename Rule::StateCounts{});
}

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
