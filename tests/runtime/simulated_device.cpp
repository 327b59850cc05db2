#include "tests/runtime/simulated_device.h"

namespace thinwire::testing {
namespace {

Simulator* machine = nullptr;

template <auto Table, auto Member, typename Args>
void later(const Args& args, const Executor& on) {
  machine->enqueue_kernel(on.stream, [args] { (Table().*Member)(args, nullptr); });
}

template <typename T>
Kernels<T> simulated_kernels() {
  constexpr auto host = &host_kernels<T>;
  return {later<host, &Kernels<T>::average, AverageArgs<T>>,
          later<host, &Kernels<T>::encode, EncodeArgs<T>>,
          later<host, &Kernels<T>::owner_reduce, OwnerReduceArgs<T>>,
          later<host, &Kernels<T>::form_error, FormErrorArgs<T>>,
          later<host, &Kernels<T>::first_non_finite, FirstNonFiniteArgs<T>>,
          later<host, &Kernels<T>::decode, DecodeArgs<T>>,
          later<host, &Kernels<T>::integrate, DecodeArgs<T>>,
          later<host, &Kernels<T>::mean_and_check, MeanAndCheckArgs<T>>};
}

template <typename T>
LowRankKernels<T> simulated_low_rank_kernels() {
  constexpr auto host = &host_low_rank_kernels<T>;
  return {later<host, &LowRankKernels<T>::orthonormal_left, OrthonormalArgs<T>>,
          later<host, &LowRankKernels<T>::orthonormal_right, OrthonormalArgs<T>>,
          later<host, &LowRankKernels<T>::project_left, ProjectLeftArgs<T>>,
          later<host, &LowRankKernels<T>::project_right, ProjectRightArgs<T>>,
          later<host, &LowRankKernels<T>::multiply, LowRankProductArgs<T>>,
          later<host, &LowRankKernels<T>::subtract, LowRankProductArgs<T>>};
}

template <typename T>
PermuteKernels<T> simulated_permute_kernels() {
  constexpr auto host = &host_permute_kernels<T>;
  return {later<host, &PermuteKernels<T>::apply, PermuteArgs<T>>,
          later<host, &PermuteKernels<T>::revert, PermuteArgs<T>>};
}

template <typename Rule, typename T>
void later_step(const BucketView<T>& bucket, const typename Rule::Step& step, const Executor& on) {
  machine->enqueue_kernel(on.stream, [bucket, step] {
    host_optimizer_kernels<T>().template step<Rule>(bucket, step, nullptr);
  });
}

template <typename T, typename... Rules>
OptimizerKernels<T> simulated_optimizer_kernels(RuleList<Rules...>) {
  constexpr auto host = &host_optimizer_kernels<T>;
  return {{later_step<Rules, T>...},
          later<host, &OptimizerKernels<T>::squared_norm, SquaredNormArgs<T>>};
}

}  // namespace

KernelsOn::KernelsOn(Simulator& simulator) {
  machine = &simulator;
}
KernelsOn::~KernelsOn() {
  machine = nullptr;
}

ReducerDevice KernelsOn::reducer_launch(std::shared_ptr<Queue> queue) const {
  return {simulated_kernels<float>(),
          simulated_kernels<double>(),
          simulated_low_rank_kernels<float>(),
          simulated_low_rank_kernels<double>(),
          std::move(queue),
          ReducerDevice{}.segment,
          simulated_permute_kernels<float>(),
          simulated_permute_kernels<double>()};
}
OptimizerDevice KernelsOn::optimizer_device(std::shared_ptr<Queue> queue) const {
  return {simulated_optimizer_kernels<float>(KernelRules{}),
          simulated_optimizer_kernels<double>(KernelRules{}), std::move(queue)};
}

}  // namespace thinwire::testing
