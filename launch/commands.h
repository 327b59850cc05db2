// The commands that do something.
#pragma once

#include <string>

#include "launch/command_line.h"
#include "launch/environment.h"

namespace thinwire {

// Trains until the end or a signal. Returns the exit code; throws what `report` reports.
int run_train(const TrainOptions& options, const CommandLine& line,
              const JobEnvironment& environment);

// Times all-reduces and prints a table. Returns the exit code; throws what `report` reports.
int run_bench(const BenchOptions& options, const JobEnvironment& environment);

// Checks the checkpoint in `folder`. Returns the exit code; throws what `report` reports.
int run_verify(const std::string& folder);

}  // namespace thinwire
