#include "launch/advise/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "collectives/base/text.h"

namespace thinwire {
namespace {

constexpr std::int64_t kManyRepeats = 10'000;

// The value of `flag`, taken out together with it; none if it is not given.
std::optional<std::string> take(std::vector<std::string>& arguments, const std::string& flag) {
  std::optional<std::string> value;
  for (auto argument = arguments.begin(); argument != arguments.end();) {
    const bool with_value = argument->starts_with(flag + "=");
    if (!with_value && *argument != flag) {
      ++argument;
      continue;
    }
    if (value) throw UsageError(fmt::format("{} is given twice; give it once", flag));
    if (with_value) {
      value = argument->substr(flag.size() + 1);
      argument = arguments.erase(argument);
      continue;
    }
    if (argument + 1 == arguments.end() || (argument + 1)->starts_with("--")) {
      throw UsageError(fmt::format("{0} lacks its value; write {0} VALUE", flag));
    }
    value = *(argument + 1);
    argument = arguments.erase(argument, argument + 2);
  }
  return value;
}

}  // namespace

AdviseOptions take_advise_options(std::vector<std::string>& arguments) {
  AdviseOptions options;
  options.compressors = take(arguments, "--compressors").value_or(options.compressors);
  options.json = take(arguments, "--json").value_or("");
  if (const auto repeats = take(arguments, "--repeats")) {
    options.repeats = parse_integer("--repeats", *repeats, 1, kManyRepeats);
  }
  split_compressors(options.compressors);
  return options;
}

std::vector<std::string> split_compressors(const std::string& list) {
  std::vector<std::string> specs;
  std::size_t begin = 0;
  for (std::size_t comma = 0; comma != std::string::npos; begin = comma + 1) {
    comma = list.find(',', begin);
    const std::string part = list.substr(begin, comma == std::string::npos ? comma : comma - begin);
    if (part.empty()) {
      throw UsageError(
          fmt::format("--compressors is '{}'; give compressors separated by commas, e.g. none,sign",
                      printable(list)));
    }
    // A key and its value belong to the compressor in front of them.
    const bool continues = part.find('=') < part.find(':');
    if (continues && !specs.empty()) {
      specs.back() += "," + part;
    } else {
      specs.push_back(part);
    }
  }
  return specs;
}

std::string advise_help_text() {
  const AdviseOptions defaults;
  return fmt::format(
      "Usage: thinwire advise [--FLAG VALUE]...\n"
      "Says which compressor makes a step of this training shortest on these ranks and links. It\n"
      "measures the exchanges between the ranks, then steps of each compressor without a network, "
      "and\n"
      "puts both together. Start it as you would start the training. Nothing is trained or "
      "written.\n"
      "\n"
      "  --compressors LIST  separated by commas, those that lose least first (={})\n"
      "  --repeats N         steps of each in each of three rounds; runs of each exchange and size "
      "(={})\n"
      "  --json FILE         the results, also for programs\n"
      "\n"
      "All flags of `thinwire train` are understood too: --model, --data, --batch-size, "
      "--bucket-mb,\n"
      "--ranks ... --feedback and --exchange count for the compressor that --compressor names; "
      "the\n"
      "others have their defaults.\n"
      "\n"
      "wire: bytes that a rank sends in a step. arithmetic: coding and decoding. network: what "
      "the\n"
      "exchanges take; backward hides some of it. step: the whole step. pays below: the bandwidth "
      "of "
      "a\n"
      "rank's link below which the bytes that are saved are worth the arithmetic that is added.\n",
      defaults.compressors, defaults.repeats);
}

}  // namespace thinwire
