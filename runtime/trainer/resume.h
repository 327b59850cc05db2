// Where a run's checkpoints are, and which one it continues from.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/lineage.h"
#include "runtime/trainer/options.h"

namespace thinwire {

class TrainerObserver;

// The folder of all checkpoints of a run.
std::string checkpoint_root(const TrainOptions& options);

// "lr 0.1, was 0.05; ..." for what differs between two configurations, empty if nothing does. Where
// a run writes and how long it goes on do not count.
std::string describe_changes(const std::map<std::string, std::string>& before,
                             const std::map<std::string, std::string>& now);

// What a run goes on from.
struct Resumption {
  std::optional<std::string> folder;  // of a checkpoint; none: it starts anew
  std::int64_t step = 0;              // of that checkpoint
  // Folders beside this run's checkpoints that hold a whole checkpoint of another run, or of
  // another step than the folder's name says. Only rank 0 knows them.
  std::vector<std::string> strangers;
};

// Collective: rank 0 looks and verifies, and every rank gets its choice. "auto" is the newest whole
// checkpoint of this lineage, or none where there is no checkpoint at all. Anything else names a
// checkpoint's folder. Every rank throws `AgreedError`: with exit code 65 where that folder's
// checkpoint is not whole or is of another lineage, and where "auto" finds checkpoints but none
// that is whole and of this lineage; with 74 where something cannot be read. The observer is told
// of the checkpoints that were passed over.
Resumption choose_checkpoint(FileSystem& files, Communicator& communicator,
                             const TrainOptions& options, const Lineage& lineage,
                             TrainerObserver& observer);

}  // namespace thinwire
