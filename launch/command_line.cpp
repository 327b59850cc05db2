#include "launch/command_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/algorithm/string.hpp>
#include <boost/program_options.hpp>
#include <cerrno>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <system_error>

#include "launch/exit.h"
#include "runtime/base/error.h"
#include "runtime/base/spec.h"

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

// A question about the known word that `word` abbreviates, or else that is nearest to it.
std::string did_you_mean(const std::string& word, const std::vector<std::string>& known) {
  const auto longer = std::find_if(known.begin(), known.end(),
                                   [&](const std::string& name) { return name.starts_with(word); });
  const std::string near = longer != known.end() ? *longer : nearest(word, known);
  return near.empty() ? "" : fmt::format("did you mean '{}'? ", near);
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
                      fmt::join(parsed.value, " ")));
    }
    const std::string flag = "--" + name;
    const auto option = std::find_if(options.begin(), options.end(), [&](const Option& known_one) {
      return known_one.name == name;
    });
    if (std::find(known.begin(), known.end(), flag) == known.end()) {
      throw UsageError(fmt::format("unknown flag {}; {}`thinwire train --help` lists all", flag,
                                   did_you_mean(flag, known)));
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

// The group of options that a section's header, "[Communication]", names in letters of any case.
std::string section_of(const std::string& header, const std::string& place,
                       const std::vector<Option>& options) {
  std::vector<std::string> groups;
  for (const Option& option : options) {
    if (boost::algorithm::iequals(header, fmt::format("[{}]", option.group))) return option.group;
    if (groups.empty() || groups.back() != option.group) groups.push_back(option.group);
  }
  throw UsageError(
      fmt::format("{}: no section {}; give one of [{}]", place, header, fmt::join(groups, "], [")));
}

void read_config_file(const std::string& file, TrainRequest& request) {
  errno = 0;
  std::ifstream stream(file);
  // Reading ahead tells a folder or an unreadable file from an empty one.
  if (!stream || (stream.peek(), stream.bad())) {
    throw IoError(fmt::format("--config: cannot read '{}': {}; check the path", file,
                              std::generic_category().message(errno)));
  }
  read_config(stream, file, request);
}

CommandLine parse_train(const std::vector<std::string>& arguments) {
  const auto options = options_table();
  const Flags flags = parse_flags(arguments, options);
  CommandLine line;
  line.command = flags.instead.value_or(Command::train);
  if (line.command == Command::train_help) return line;
  if (flags.config) read_config_file(*flags.config, line.train);
  apply(flags.given, options, line.train);
  return line;
}

CommandLine parse_verify(const std::vector<std::string>& arguments) {
  if (arguments.size() != 1 || arguments[0].empty() || arguments[0].starts_with("-")) {
    throw UsageError(fmt::format("verify takes one folder, not '{}'; write thinwire verify FOLDER",
                                 fmt::join(arguments, " ")));
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
                    arguments.empty() ? "" : arguments[0]));
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
    throw UsageError(fmt::format("unknown command '{}'; {}give {}", command,
                                 did_you_mean(command, commands), fmt::join(commands, ", ")));
  }
  CommandLine line;
  line.command = command == "info" ? Command::info : Command::help;
  if (!rest.empty() && rest != std::vector<std::string>{"--help"}) {
    throw UsageError(fmt::format("{} takes no '{}'; leave it out", command, fmt::join(rest, " ")));
  }
  if (!rest.empty()) line.command = Command::help;
  return line;
}

void read_config(std::istream& stream, const std::string& file, TrainRequest& request) {
  const auto options = options_table();
  const auto known = names(options);
  std::vector<Given> given;
  std::set<std::string> seen;
  std::string section;  // empty before the first header: keys of all of them
  std::string text;
  for (int number = 1; std::getline(stream, text); ++number) {
    const std::string place = fmt::format("{}:{}", file, number);
    const UsageError no_pair(fmt::format("{}: '{}' is no setting; write KEY = VALUE", place, text));
    // Boost does not tell line numbers, so it gets one line at a time.
    std::istringstream line(text);
    po::parsed_options parsed(nullptr);
    try {
      parsed = po::parse_config_file<char>(line, po::options_description(), true);
    } catch (const po::invalid_config_file_syntax&) {
      throw no_pair;
    }
    const std::string header = boost::algorithm::trim_copy(text.substr(0, text.find('#')));
    if (parsed.options.empty() && !header.empty()) section = section_of(header, place, options);
    for (const auto& setting : parsed.options) {
      const std::string& key = setting.string_key;
      if (key.empty()) throw no_pair;
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        throw UsageError(fmt::format("{}: unknown key '{}'; {}`thinwire train --help` lists all",
                                     place, key, did_you_mean(key, known)));
      }
      if (!seen.insert(key).second) {
        throw UsageError(fmt::format("{}: {} is given twice; give it once", place, key));
      }
      const std::string& home = find(options, key).group;
      if (!section.empty() && home != section) {
        throw UsageError(fmt::format("{}: {} is no setting of [{}]; move it to [{}]", place, key,
                                     section, home));
      }
      given.push_back({fmt::format("{}: {}", place, key), key, setting.value.front()});
    }
  }
  apply(given, options, request);
}

std::string config_text(const TrainRequest& request) {
  std::string text = "# thinwire train --config FILE\n";
  std::string group;
  for (const auto& option : options_table()) {
    if (option.group != group) text += fmt::format("\n[{}]\n", option.group);
    group = option.group;
    const std::string value = option.get(request);
    const std::string blanks = " \t\r\n";
    const bool trimmed = value.empty() || (blanks.find(value.front()) == std::string::npos &&
                                           blanks.find(value.back()) == std::string::npos);
    if (!trimmed || value.find_first_of("#\n") != std::string::npos) {
      throw UsageError(fmt::format(
          "--{} is '{}', which a config file cannot hold; avoid '#', line ends and outer blanks",
          option.name, value));
    }
    const std::string range = option.range();
    text += fmt::format("# {}{}\n{} ={}{}\n", option.help,
                        range.empty() ? "" : fmt::format(" ({})", range), option.name,
                        value.empty() ? "" : " ", value);
  }
  return text;
}

std::map<std::string, std::string> as_map(const TrainRequest& request) {
  std::map<std::string, std::string> map;
  for (const auto& option : options_table()) map[option.name] = option.get(request);
  return map;
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
         "  thinwire help                      print this text\n"
         "\n"
         "Ranks are threads (thinwire train --ranks 4) or processes (thinwire train under mpirun, "
         "srun or\n"
         "torchrun --no-python).\n"
         "SIGUSR1, SIGTERM or SIGINT: checkpoint and stop at the next step.\n"
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
