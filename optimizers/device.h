// The device on which an optimizer's arithmetic runs.
#pragma once

#include <memory>
#include <type_traits>

#include "collectives/queue.h"
#include "optimizers/kernels/kernels.h"

namespace thinwire {

// Kernels, and the queue that they are put on. The buckets are in the memory of that queue. The
// default is the host.
struct OptimizerDevice {
  OptimizerKernels<float> for_float = host_optimizer_kernels<float>();
  OptimizerKernels<double> for_double = host_optimizer_kernels<double>();
  std::shared_ptr<Queue> queue = make_host_queue();

  template <typename T>
  const OptimizerKernels<T>& kernels() const {
    if constexpr (std::is_same_v<T, double>) {
      return for_double;
    } else {
      return for_float;
    }
  }
};

}  // namespace thinwire
