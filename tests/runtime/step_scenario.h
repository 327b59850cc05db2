// Two ranks that train on simulated devices, without autograd.
#pragma once

#include "tests/support/simulator/scenario.h"

namespace thinwire::testing {

// Steps of BucketReducer, reducers and Sgd, with 1-bit gradients, dense ones and low rank in turn
// by the seed, among them one with a NaN; the weights after every step are held to those of ranks
// that are threads.
ScenarioResult step_scenario(std::uint64_t seed, const std::optional<WaitSite>& ignored);

}  // namespace thinwire::testing
