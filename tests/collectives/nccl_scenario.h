// Two ranks that use the NCCL backend as a training step does.
#pragma once

#include "tests/support/simulator/scenario.h"

namespace thinwire::testing {

// Kernels make inputs, several operations are in flight, kernels read the results and overwrite the
// buffers; a barrier, and at the end a wait for the verdict.
ScenarioResult nccl_scenario(std::uint64_t seed, const std::optional<WaitSite>& ignored);

}  // namespace thinwire::testing
