#include "launch/command_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <optional>
#include <set>
#include <sstream>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "launch/exit.h"

namespace po = boost::program_options;

namespace thinwire {
namespace {

constexpr unsigned kHelpWidth = 100;

// A value for an option, and where it was found.
struct Given {
  std::string place;  // "--lr" or "run.ini:3: lr"
  std::string name;
  std::string value;
};

// What the flags of `train` said, before values are looked at.
struct Flags {
  std::vector<Given> given;
  std::optional<std::string> config;
  std::optional<Command> instead;  // --help, --print-config
};

std::vector<std::string> names(const std::vector<Option>& options) {
  std::vector<std::string> result;
  for (const auto& option : options) result.push_back(option.name);
  return result;
}

po::options_description description(const std::vector<Option>& options) {
  const TrainRequest defaults;
  po::options_description all(kHelpWidth, kHelpWidth / 2);
  for (auto first = options.begin(); first != options.end();) {
    po::options_description group(first->group, kHelpWidth, kHelpWidth / 2);
    const auto last = std::find_if(
        first, options.end(), [&](const Option& option) { return option.group != first->group; });
    for (; first != last; ++first) {
      auto* value = po::value<std::string>()->value_name(first->placeholder());
      const std::string fallback = first->get(defaults);
      if (first->is_switch()) {
        value->zero_tokens();
      } else if (!fallback.empty()) {
        value->default_value(fallback);
      }
      const std::string range = first->range();
      const std::string help =
          range.empty() ? first->help : fmt::format("{} ({})", first->help, range);
      group.add_options()(first->name.c_str(), value, help.c_str());
    }
    all.add(group);
  }
  po::options_description program("This command", kHelpWidth, kHelpWidth / 2);
  program.add_options()("config", po::value<std::string>()->value_name("FILE"),
                        "file with a line KEY = VALUE for each option; flags override it");
  program.add_options()("print-config", "print the resulting options as such a file, and stop");
  program.add_options()("help", "print this text, and stop");
  all.add(program);
  return all;
}

po::parsed_options boost_parse(const std::vector<std::string>& arguments,
                               const po::options_description& flags) {
  namespace style = po::command_line_style;
  try {
    // No guessing: an abbreviation would change its meaning when an option is added.
    return po::command_line_parser(arguments)
        .options(flags)
        .style(style::allow_long | style::long_allow_adjacent | style::long_allow_next)
        .allow_unregistered()
        .run();
  } catch (const po::invalid_command_line_syntax& error) {
    if (error.kind() == po::invalid_command_line_syntax::extra_parameter) {
      throw UsageError(
          fmt::format("{} takes no value; leave out the '=...'", error.get_option_name()));
    }
    throw UsageError(fmt::format("{0} lacks its value; write {0} VALUE", error.get_option_name()));
  }
}

Flags parse_flags(const std::vector<std::string>& arguments, const std::vector<Option>& options) {
  Flags flags;
  std::set<std::string> seen;
  std::vector<std::string> known{"--config", "--print-config", "--help"};
  for (const auto& name : names(options)) known.push_back("--" + name);
  for (const auto& parsed : boost_parse(arguments, description(options)).options) {
    const std::string& name = parsed.string_key;
    if (name.empty()) {
      throw UsageError(
          fmt::format("'{}' belongs to no flag; `thinwire train` takes only --FLAG VALUE",
                      printable(fmt::format("{}", fmt::join(parsed.value, " ")))));
    }
    const std::string flag = "--" + name;
    const auto option = std::find_if(options.begin(), options.end(), [&](const Option& known_one) {
      return known_one.name == name;
    });
    if (std::find(known.begin(), known.end(), flag) == known.end()) {
      throw UsageError(fmt::format("unknown flag {}; {}`thinwire train --help` lists all",
                                   printable(flag), did_you_mean(flag, known)));
    }
    if (!seen.insert(name).second) {
      throw UsageError(fmt::format("{} is given twice; give it once", flag));
    }
    if (name == "help") {
      flags.instead = Command::train_help;
      return flags;
    }
    if (name == "print-config") {
      flags.instead = Command::print_config;
      continue;
    }
    if (option != options.end() && option->is_switch()) {
      flags.given.push_back({flag, name, "true"});
      continue;
    }
    // Nothing that an option can hold starts like a flag: the value was forgotten.
    if (parsed.value.empty() || parsed.value.front().starts_with("--")) {
      throw UsageError(fmt::format("{0} lacks its value; write {0} VALUE", flag));
    }
    if (name == "config") {
      flags.config = parsed.value.front();
    } else {
      flags.given.push_back({flag, name, parsed.value.front()});
    }
  }
  return flags;
}

// The option called `name`, which is there.
const Option& find(const std::vector<Option>& options, const std::string& name) {
  return *std::find_if(options.begin(), options.end(),
                       [&](const Option& option) { return option.name == name; });
}

void apply(const std::vector<Given>& given, const std::vector<Option>& options,
           TrainRequest& request) {
  for (const auto& [place, name, value] : given) find(options, name).set(request, place, value);
}

CommandLine parse_train(const std::vector<std::string>& arguments) {
  const auto options = options_table();
  const Flags flags = parse_flags(arguments, options);
  CommandLine line;
  line.command = flags.instead.value_or(Command::train);
  if (line.command == Command::train_help) return line;
  if (flags.config) read_config(config_bytes(*flags.config), *flags.config, line.train);
  apply(flags.given, options, line.train);
  return line;
}

CommandLine parse_verify(const std::vector<std::string>& arguments) {
  if (arguments.size() != 1 || arguments[0].empty() || arguments[0].starts_with("-")) {
    throw UsageError(fmt::format("verify takes one folder, not '{}'; write thinwire verify FOLDER",
                                 printable(fmt::format("{}", fmt::join(arguments, " ")))));
  }
  CommandLine line;
  line.command = Command::verify;
  line.folder = arguments[0];
  return line;
}

CommandLine parse_advise(std::vector<std::string> arguments) {
  CommandLine line;
  line.command = Command::advise_help;
  if (std::find(arguments.begin(), arguments.end(), "--help") != arguments.end()) return line;
  const AdviseOptions advise = take_advise_options(arguments);
  line = parse_train(arguments);
  if (line.command == Command::train) line.command = Command::advise;
  line.advise = advise;
  return line;
}

CommandLine parse_bench_command(const std::vector<std::string>& arguments) {
  CommandLine line;
  line.command = Command::bench_help;
  if (std::find(arguments.begin(), arguments.end(), "--help") != arguments.end()) return line;
  if (arguments.empty() || arguments[0] != "all-reduce") {
    throw UsageError(
        fmt::format("bench knows all-reduce, not '{}'; write thinwire bench all-reduce",
                    arguments.empty() ? "" : printable(arguments[0])));
  }
  line.command = Command::bench;
  line.bench = parse_bench({arguments.begin() + 1, arguments.end()});
  return line;
}

}  // namespace

CommandLine parse_command_line(const std::vector<std::string>& arguments) {
  const std::vector<std::string> commands{"train", "advise", "bench", "verify", "info", "help"};
  if (arguments.empty()) {
    throw UsageError(fmt::format("no command; give {}", fmt::join(commands, ", ")));
  }
  const std::string& command = arguments[0];
  const std::vector<std::string> rest(arguments.begin() + 1, arguments.end());
  const bool asks_for_help = command == "help" || command == "--help" || command == "-h";
  if (command == "train") return parse_train(rest);
  if (asks_for_help && rest == std::vector<std::string>{"train"}) return parse_train({"--help"});
  if (command == "advise") return parse_advise(rest);
  if (asks_for_help && rest == std::vector<std::string>{"advise"}) return parse_advise({"--help"});
  if (command == "bench") return parse_bench_command(rest);
  if (asks_for_help && rest == std::vector<std::string>{"bench"}) {
    return parse_bench_command({"--help"});
  }
  if (command == "verify" && rest != std::vector<std::string>{"--help"}) return parse_verify(rest);
  if (!asks_for_help && command != "verify" && command != "info") {
    throw UsageError(fmt::format("unknown command '{}'; {}give {}", printable(command),
                                 did_you_mean(command, commands), fmt::join(commands, ", ")));
  }
  CommandLine line;
  if (command == "info" && rest == std::vector<std::string>{"--kernels"}) {
    line.command = Command::info_kernels;
    return line;
  }
  line.command = command == "info" ? Command::info : Command::help;
  if (!rest.empty() && rest != std::vector<std::string>{"--help"}) {
    throw UsageError(fmt::format("{} takes no '{}'; leave it out", command,
                                 printable(fmt::format("{}", fmt::join(rest, " ")))));
  }
  if (!rest.empty()) line.command = Command::help;
  return line;
}

std::string help_text() {
  return "Trains neural networks data-parallel with compressed gradients.\n"
         "\n"
         "Usage:\n"
         "  thinwire train [--FLAG VALUE]...   train; `thinwire train --help` lists the flags\n"
         "  thinwire advise [--FLAG VALUE]...  say which compressor makes that training fastest "
         "here\n"
         "  thinwire bench all-reduce          time all-reduces; `thinwire bench --help` has more\n"
         "  thinwire verify FOLDER             check that a checkpoint is complete and undamaged\n"
         "  thinwire info                      print the version and what it was built with\n"
         "  thinwire info --kernels            time the forms of this machine's kernels\n"
         "  thinwire help                      print this text\n"
         "\n"
         "Ranks are threads (thinwire train --ranks 4) or processes (thinwire train under mpirun, "
         "srun or\n"
         "torchrun --no-python).\n"
         "SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP or SIGXCPU: checkpoint and stop at the next "
         "step.\n"
         "\n"
         "Exit codes:\n" +
         exit_code_table();
}

std::string train_help_text() {
  std::ostringstream text;
  text << "Usage: thinwire train [--FLAG VALUE]...\n"
          "A flag's value is the one behind it, else the config file's, else the default (=...).\n"
       << description(options_table());
  return text.str();
}

}  // namespace thinwire
