#include <fmt/format.h>

#include <cstdio>
#include <string>
#include <vector>

#include "examples/models/models.h"
#include "launch/commands.h"
#include "launch/info.h"
#include "launch/launch.h"
#include "runtime/base/error.h"

namespace thinwire {
namespace {

int print(const std::string& text) {
  const bool written = std::fputs(text.c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  if (!written) throw Error(ExitCode::cannot_write, "cannot write to stdout; check where it goes");
  return 0;
}

int run(const std::vector<std::string>& arguments, const JobEnvironment& environment) {
  const CommandLine line = parse_command_line(arguments);
  require_one_kind_of_rank(environment,
                           line.command == Command::bench ? line.bench.ranks : line.train.ranks);
  const MakeModel make = [](const std::string& spec, const Dataset& data) {
    return make_model(spec, data);
  };
  if (line.command == Command::train) return run_train(line.train, line, environment, make);
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
      return print(config_text(line.train));
    case Command::verify:
      return run_verify(line.folder);
    case Command::info:
      return print(info_text() + fmt::format("launcher  {}\n", describe(environment)));
    case Command::help:
      return print(help_text());
    case Command::train_help:
      return print(train_help_text());
    case Command::advise_help:
      return print(advise_help_text());
    case Command::bench_help:
      return print(bench_help_text());
  }
  throw Bug("bug: a command without a case");
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + (argc > 0 ? 1 : 0), argv + argc);
  return thinwire::run_reported([&](const thinwire::JobEnvironment& environment) {
    return thinwire::run(arguments, environment);
  });
}
