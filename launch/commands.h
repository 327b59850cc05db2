// The commands that do something.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "launch/command_line.h"
#include "launch/environment.h"
#include "launch/signals.h"
#include "runtime/data/dataset.h"
#include "runtime/model/model.h"

namespace thinwire {

// Makes the model that `--model` names, for samples like those of `data`.
using MakeModel = std::function<Model(const std::string& spec, const Dataset& data)>;

// Trains until the end or until a signal. `signals` was made before any other thread. Returns the
// exit code. What it throws is meant for `report` (launch/exit.h), as with all of these commands.
int run_train(const TrainOptions& options, const CommandLine& line,
              const JobEnvironment& environment, const MakeModel& make, SignalWatcher& signals);

// Compares compressors and prints which to take. Returns the exit code.
int run_advise(const CommandLine& line, const JobEnvironment& environment, const MakeModel& make);

// Times all-reduces and prints a table. Returns the exit code.
int run_bench(const BenchOptions& options, const JobEnvironment& environment);

// Checks the checkpoint in `folder`. Returns the exit code.
int run_verify(const std::string& folder);

}  // namespace thinwire
