#include "runtime/trainer/resume.h"

#include <fmt/format.h>

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

std::optional<FoundCheckpoint> choose_checkpoint(FileSystem& files, Communicator& communicator,
                                                 const TrainOptions& options,
                                                 TrainerObserver& observer) {
  // One rank decides, or ranks could choose differently while a file system settles. An error
  // travels as a text with a mark, so that every rank throws it.
  std::string choice;
  if (communicator.rank() == 0) {
    try {
      if (options.resume == "auto") {
        const LatestCheckpoint latest = find_latest_checkpoint(files, checkpoint_root(options));
        for (const auto& sentence : latest.rejected) observer.on_line("warning: " + sentence);
        if (latest.found) choice = "=" + latest.found->folder;
      } else {
        verify_checkpoint(files, options.resume);
        choice = "=" + options.resume;
      }
    } catch (const Error& error) {
      choice = std::string("!") + error.what();
    }
  }
  choice = broadcast_text(communicator, choice, 0);
  if (choice.empty()) {
    observer.on_line(fmt::format("no checkpoint in {}: starting anew", checkpoint_root(options)));
    return std::nullopt;
  }
  const std::string text = choice.substr(1);
  if (choice[0] == '!') throw DataError(text);

  FoundCheckpoint found{text, read_manifest(files, text)};
  if (found.manifest.world_size != communicator.size()) {
    observer.on_line(fmt::format(
        "the checkpoint is of {} ranks, this run has {}: parameters and optimizer are exact, "
        "residuals restart from their mean, the order of samples is unchanged",
        found.manifest.world_size, communicator.size()));
  }
  return found;
}

}  // namespace thinwire
