#include "runtime/trainer/resume.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "collectives/agreement.h"
#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "runtime/report/report.h"

namespace thinwire {
std::string checkpoint_root(const TrainOptions& options) {
  return options.output + "/checkpoints";
}

std::string describe_changes(const std::map<std::string, std::string>& before,
                             const std::map<std::string, std::string>& now) {
  static constexpr std::array kFree = {"output",  "resume",       "steps",  "epochs",
                                       "trace",   "report-every", "ranks",  "checkpoint-every",
                                       "backend", "share-device", "job-id", "exchange-threads",
                                       "kernels"};
  std::string text;
  for (const auto& [key, value] : now) {
    const auto old = before.find(key);
    if (old == before.end() || old->second == value) continue;
    if (std::find(kFree.begin(), kFree.end(), key) != kFree.end()) continue;
    // What `none` was the default of is called auto now.
    if (key == "compressor" && old->second == "none" && value == "auto") continue;
    text += fmt::format("{}{} {}, was {}", text.empty() ? "" : "; ", key, printable(value),
                        printable(old->second));
  }
  return text;
}

Resumption choose_checkpoint(FileSystem& files, Communicator& communicator,
                             const TrainOptions& options, const Lineage& lineage,
                             TrainerObserver& observer) {
  const std::string root = checkpoint_root(options);
  const auto objection = [&](const Manifest& manifest) {
    return describe_other_lineage(manifest, lineage);
  };
  Resumption resumption;
  const std::string folder = rank_zero_says(communicator, [&]() -> std::string {
    const auto refuse = [](const std::string& where, const std::string& why) {
      throw DataError(fmt::format("{}: {}; resume with the same, or start anew", where, why));
    };
    const std::vector<StrangeCheckpoint> strangers = find_strangers(files, root, objection);
    for (const auto& stranger : strangers) resumption.strangers.push_back(stranger.folder);
    if (options.resume != "auto") {
      const std::string why = objection(verify_checkpoint(files, options.resume));
      if (!why.empty()) refuse(options.resume, why);
      return options.resume;
    }
    const LatestCheckpoint latest = find_latest_checkpoint(files, root, objection);
    for (const auto& sentence : latest.rejected) observer.on_line("warning: " + sentence);
    if (latest.found) return latest.found->folder;
    // Nobody who asks for a checkpoint wants to start anew beside those that are there.
    if (!strangers.empty()) refuse(strangers.front().folder, strangers.front().why);
    if (latest.any_damaged) {
      throw DataError(
          fmt::format("none of the checkpoints in {} is whole; copy one there that is, "
                      "or start anew without --resume",
                      root));
    }
    return {};
  });
  if (folder.empty()) {
    observer.on_line(fmt::format("no checkpoint in {}: starting anew", root));
  } else {
    resumption.folder = folder;
  }
  return resumption;
}

}  // namespace thinwire
