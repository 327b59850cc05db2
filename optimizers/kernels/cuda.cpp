#include "collectives/compression/kernels/device_number.h"
#include "collectives/compression/kernels/launch.h"
#include "optimizers/kernels/kernels.h"
#include "optimizers/kernels/launch.h"

namespace thinwire {

namespace {

template <typename Rule, typename T>
void step(const BucketView<T>& bucket, const typename Rule::Step& step, const Executor& on) {
  launch::check_launched(launch::step<Rule>(bucket, step, on.stream));
}

template <typename T, typename... Rules>
OptimizerKernels<T> kernels_of(RuleList<Rules...>) {
  return {{step<Rules, T>...}, launch::checked<launch::squared_norm<T>, SquaredNormArgs<T>>};
}

}  // namespace

template <typename T>
OptimizerKernels<T> cuda_optimizer_kernels() {
  return kernels_of<T>(KernelRules{});
}

template OptimizerKernels<DeviceNumber> cuda_optimizer_kernels<DeviceNumber>();

}  // namespace thinwire
