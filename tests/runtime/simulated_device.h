// The trainer's kernels on simulated devices.
#pragma once

#include "collectives/compression/options.h"
#include "collectives/compression/reducer/reducer_device.h"
#include "optimizers/device.h"
#include "tests/support/simulator/simulator.h"

namespace thinwire::testing {

// While it lives, `reducer_launch` and `optimizer_device` put the host's kernels on the streams of
// this simulator. One at a time, because kernels are C functions.
class KernelsOn {
 public:
  explicit KernelsOn(Simulator& simulator);
  ~KernelsOn();
  KernelsOn(const KernelsOn&) = delete;
  KernelsOn& operator=(const KernelsOn&) = delete;

  ReducerDevice reducer_launch(std::shared_ptr<Queue> queue) const;
  OptimizerDevice optimizer_device(std::shared_ptr<Queue> queue) const;
};

}  // namespace thinwire::testing
