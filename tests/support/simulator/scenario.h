// A run on the simulator that checks its own results: material for runs with a wait left out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/simulator/simulator.h"

namespace thinwire::testing {

// What a scenario found.
struct ScenarioResult {
  std::vector<std::string> problems;  // none: all results were right
  std::vector<WaitSite> sites;        // that waited
};

// Runs once, with the waits at `ignored` left out. What may still be touched by what the simulator
// has not run must outlive the call's ranks.
using Scenario = ScenarioResult (*)(std::uint64_t seed, const std::optional<WaitSite>& ignored);

}  // namespace thinwire::testing
