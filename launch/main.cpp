#include <fmt/format.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "collectives/base/error.h"
#include "examples/models/models.h"
#include "launch/commands.h"
#include "launch/cores.h"
#include "launch/info.h"
#include "launch/launch.h"
#include "launch/output.h"
#include "launch/signals.h"

namespace thinwire {
namespace {

// Whether the first argument says that this is a run, which is asked to stop where another command
// is ended. Known before anything that takes time.
bool trains(const std::vector<std::string>& arguments) {
  return !arguments.empty() && arguments.front() == "train";
}

// Any command but `train`.
int show(const CommandLine& line, const JobEnvironment& environment, const MakeModel& make) {
  if (line.command == Command::advise) return run_advise(line, environment, make);
  if (line.command == Command::bench) return run_bench(line.bench, environment);
  // Everything else is one process's work, however many were started.
  if (environment.rank > 0) return 0;
  switch (line.command) {
    case Command::train:
    case Command::advise:
    case Command::bench:
      break;
    case Command::print_config:
      print(config_text(line.train));
      return 0;
    case Command::verify:
      return run_verify(line.folder);
    case Command::info:
      print(info_text() + fmt::format("launcher  {}\n", describe(environment)));
      return 0;
    case Command::info_kernels:
      print(describe(choose_host_kernels()));
      return 0;
    case Command::help:
      print(help_text());
      return 0;
    case Command::train_help:
      print(train_help_text());
      return 0;
    case Command::advise_help:
      print(advise_help_text());
      return 0;
    case Command::bench_help:
      print(bench_help_text());
      return 0;
  }
  throw Bug("bug: a command without a case");
}

int run(const std::vector<std::string>& arguments, const JobEnvironment& environment,
        std::optional<SignalWatcher>& signals) {
  if (trains(arguments)) signals.emplace();
  const CommandLine line = parse_command_line(arguments);
  require_one_kind_of_rank(environment,
                           line.command == Command::bench ? line.bench.ranks : line.train.ranks);
  const MakeModel make = [](const std::string& spec, const Dataset& data) {
    return make_model(spec, data);
  };
  if (line.command == Command::train) {
    return run_train(line.train, line, environment, make, *signals);
  }
  if (signals) signals->release();
  const int code = show(line, environment, make);
  if (code == 0) require_printed();
  return code;
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  thinwire::occupy_standard_descriptors();
  const thinwire::WritesFailAlive writes;
  const std::vector<std::string> arguments(argv + (argc > 0 ? 1 : 0), argv + argc);
  std::optional<thinwire::SignalWatcher> signals;
  const int code = thinwire::run_reported([&](const thinwire::JobEnvironment& environment) {
    try {
      return thinwire::run(arguments, environment, signals);
    } catch (...) {
      // Launchers end the other ranks meanwhile, which have nothing to save either.
      if (signals) signals->give_up();
      throw;
    }
  });
  // A run that has ended has its exit code: a signal may no longer change it. So what watches them
  // stays until the process is gone.
  if (signals) signals->give_up();
  std::exit(code);
}
