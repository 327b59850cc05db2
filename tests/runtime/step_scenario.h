// Two ranks that train on simulated devices, without autograd.
#pragma once

#include "tests/support/simulator/scenario.h"

namespace thinwire::testing {

// Steps of StepTransaction, reducers and Sgd, with 1-bit gradients, dense ones, low rank and
// averages that are tracked in turn by the seed, among them one with a NaN and one with a frozen
// parameter; the weights after every step and the state at the end are held to those of ranks that
// are threads.
constexpr std::uint64_t kStepScenarioKinds = 4;
ScenarioResult step_scenario(std::uint64_t seed, const std::optional<WaitSite>& ignored);

}  // namespace thinwire::testing
