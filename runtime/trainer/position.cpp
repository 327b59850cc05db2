#include "runtime/trainer/position.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <string>

#include "collectives/base/error.h"
#include "collectives/base/text.h"

namespace thinwire {
namespace {

// No run comes so far; sums and products of smaller ones fit.
constexpr std::int64_t kTooMany = std::int64_t{1} << 48;

}  // namespace

void require_possible_position(const FoundCheckpoint& found, std::int64_t samples) {
  const auto& counters = found.manifest.counters;
  const auto refuse = [&](const std::string& why) {
    throw AgreedError(
        ExitCode::bad_data,
        fmt::format("{}: {}; the checkpoint is damaged, use another", found.folder, why));
  };
  for (const auto& [name, value] : counters) {
    if (value >= kTooMany) refuse(fmt::format("'{}' is {}", printable(name), value));
  }
  const auto has_all = [&](std::initializer_list<const char*> names) {
    return std::all_of(names.begin(), names.end(),
                       [&](const char* name) { return counters.contains(name); });
  };
  if (has_all({"consumed_samples"}) && counters.at("consumed_samples") >= samples) {
    refuse(fmt::format("{} samples of an epoch of {} are consumed", counters.at("consumed_samples"),
                       samples));
  }
  if (!has_all({"attempted_steps", "committed_steps", "skipped_steps", "skipped_in_a_row"})) return;
  const std::int64_t attempted = counters.at("attempted_steps");
  if (attempted != found.manifest.step) {
    refuse(fmt::format("it is of step {}, but {} steps were attempted", found.manifest.step,
                       attempted));
  }
  if (counters.at("committed_steps") + counters.at("skipped_steps") != attempted ||
      counters.at("skipped_in_a_row") > counters.at("skipped_steps")) {
    refuse(fmt::format("of {} attempted steps {} were committed and {} skipped, {} in a row",
                       attempted, counters.at("committed_steps"), counters.at("skipped_steps"),
                       counters.at("skipped_in_a_row")));
  }
}

}  // namespace thinwire
