#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <optional>

#include "examples/models/models.h"
#include "launch/commands.h"
#include "launch/exit.h"
#include "launch/info.h"
#include "launch/job.h"
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

int run_reported(const std::vector<std::string>& arguments) {
  JobEnvironment environment;
  try {
    environment = job_environment([](const char* name) { return std::getenv(name); });
    return run(arguments, environment);
  } catch (const std::exception& error) {
    // All ranks have the same arguments: one of them says what is wrong with these.
    const bool said = environment.rank > 0 && dynamic_cast<const UsageError*>(&error);
    if (said) {
      let_others_speak();
      return exit_code(error);
    }
    return report(error,
                  environment.world_size > 1 ? std::optional(environment.rank) : std::nullopt);
  }
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  // libtorch then puts tensors of 2 MiB and more in huge pages. Whoever has set it decides.
  setenv("THP_MEM_ALLOC_ENABLE", "1", 0);
  return thinwire::run_reported({argv + (argc > 0 ? 1 : 0), argv + argc});
}
