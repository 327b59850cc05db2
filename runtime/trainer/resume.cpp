#include "runtime/trainer/resume.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "runtime/agreement.h"
#include "runtime/base/error.h"
#include "runtime/trainer/trainer.h"

namespace thinwire {

std::string checkpoint_root(const TrainOptions& options) {
  return options.output + "/checkpoints";
}

void visit_parameters(const std::vector<Parameter>& parameters, StateVisitor& visitor) {
  for (const auto& parameter : parameters) {
    visitor.tensor({.name = parameter.name,
                    .kind = StateKind::replicated,
                    .tensor = parameter.tensor.detach()});
  }
}

void require_same_lineage(const FoundCheckpoint& found,
                          const std::map<std::string, std::string>& lineage) {
  for (const auto& [key, now] : lineage) {
    const auto before = found.manifest.info.find(key);
    if (before == found.manifest.info.end() || before->second == now) continue;
    throw AgreedError(ExitCode::bad_data,
                      fmt::format("{}: was made with {} {}, this run has {}; resume with the same "
                                  "seed and data, or start anew",
                                  found.folder, key, before->second, now));
  }
}

std::string describe_changes(const std::map<std::string, std::string>& before,
                             const std::map<std::string, std::string>& now) {
  static constexpr std::array kFree = {"output",  "resume",       "steps", "epochs",
                                       "trace",   "report-every", "ranks", "checkpoint-every",
                                       "backend", "share-device", "job-id"};
  std::string text;
  for (const auto& [key, value] : now) {
    const auto old = before.find(key);
    if (old == before.end() || old->second == value) continue;
    if (std::find(kFree.begin(), kFree.end(), key) != kFree.end()) continue;
    text += fmt::format("{}{} {}, was {}", text.empty() ? "" : "; ", key, value, old->second);
  }
  return text;
}

std::optional<FoundCheckpoint> choose_checkpoint(FileSystem& files, Communicator& communicator,
                                                 const TrainOptions& options,
                                                 TrainerObserver& observer) {
  const std::string folder = rank_zero_says(communicator, [&]() -> std::string {
    if (options.resume != "auto") {
      verify_checkpoint(files, options.resume);
      return options.resume;
    }
    const LatestCheckpoint latest = find_latest_checkpoint(files, checkpoint_root(options));
    for (const auto& sentence : latest.rejected) observer.on_line("warning: " + sentence);
    return latest.found ? latest.found->folder : "";
  });
  if (folder.empty()) {
    observer.on_line(fmt::format("no checkpoint in {}: starting anew", checkpoint_root(options)));
    return std::nullopt;
  }

  FoundCheckpoint found{folder, read_manifest(files, folder)};
  if (found.manifest.world_size != communicator.size()) {
    observer.on_line(fmt::format(
        "the checkpoint is of {} ranks, this run has {}: parameters and optimizer are exact, "
        "residuals restart from their mean, the order of samples is unchanged",
        found.manifest.world_size, communicator.size()));
  }
  return found;
}

}  // namespace thinwire
