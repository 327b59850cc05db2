// What was asked: the command line of `thinwire` and its config files.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <map>
#include <string>
#include <vector>

#include "launch/advise/options.h"
#include "launch/bench_options.h"
#include "launch/options_table.h"

namespace thinwire {

enum class Command {
  train,
  print_config,
  advise,
  bench,
  verify,
  info,
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

// Lays a config file over `request`: lines "key = value" with the long flag names as keys, and
// comments from '#' to the end of the line. `file` names it for messages. Throws `UsageError`.
void read_config(std::istream& stream, const std::string& file, TrainRequest& request);

// The config file that `read_config` turns into `request` again. Throws `UsageError` if a value
// cannot be written in such a file (it has a '#', or blanks at an end).
std::string config_text(const TrainRequest& request);

// Every option by its flag name without dashes, as `config_text` writes it: what ranks compare.
std::map<std::string, std::string> as_map(const TrainRequest& request);

std::string help_text();
std::string train_help_text();

}  // namespace thinwire
