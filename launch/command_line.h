// What was asked: the command line of `thinwire` and the file that it names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/advise/options.h"
#include "launch/bench_options.h"
#include "launch/config.h"
#include "launch/options_table.h"

namespace thinwire {

enum class Command {
  train,
  print_config,
  advise,
  bench,
  verify,
  info,
  info_kernels,
  help,
  train_help,
  advise_help,
  bench_help,
};

// A command line that was understood, with every value inside its range.
struct CommandLine {
  Command command = Command::help;
  // `train`, `print_config` and `advise`: flags over the config file over the defaults
  TrainRequest train;
  AdviseOptions advise;
  BenchOptions bench;
  std::string folder;  // `verify`: the checkpoint
};

// `arguments` come without the program's name. Reads the file of --config.
// Throws `UsageError` with the flag or "file:line: key", the value, what is allowed, and the
// nearest known word; `IoError` if the config file cannot be read.
CommandLine parse_command_line(const std::vector<std::string>& arguments);

std::string help_text();
std::string train_help_text();

}  // namespace thinwire
