// The commands that do something.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "launch/command_line.h"
#include "launch/environment.h"
#include "runtime/trainer/model.h"

namespace thinwire {

// Makes what `--model` names, for samples of a shape and a number of classes.
using MakeModel = std::function<Model(
    const std::string& spec, const std::vector<std::int64_t>& sample_shape, std::int64_t classes)>;

// Trains until the end or a signal. Returns the exit code; throws what `report` reports.
int run_train(const TrainOptions& options, const CommandLine& line,
              const JobEnvironment& environment, const MakeModel& make);

// Checks the checkpoint in `folder`. Returns the exit code; throws what `report` reports.
int run_verify(const std::string& folder);

}  // namespace thinwire
