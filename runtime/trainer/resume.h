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
// a run writes and how long it goes on are no differences.
std::string describe_changes(const std::map<std::string, std::string>& before,
                             const std::map<std::string, std::string>& now);

// What a run goes on from.
struct Resumption {
  std::optional<std::string> folder;  // of a checkpoint; none: it starts anew
  std::int64_t step = 0;              // of that checkpoint
  // Folders among those of this run's checkpoints that hold whole ones of other runs, or of another
  // step than they are called by. Known to rank 0.
  std::vector<std::string> strangers;
};

// Collective: rank 0 looks and verifies, every rank gets its choice. "auto": the newest checkpoint
// of this lineage that is whole; none if there is none at all. Anything else is a checkpoint's
// folder. Every rank throws `AgreedError` (exit 65) where that is not whole or of another lineage,
// and where "auto" finds only damaged ones or whole ones of another lineage; with code 74 where
// something cannot be read. Says aloud what was passed over.
Resumption choose_checkpoint(FileSystem& files, Communicator& communicator,
                             const TrainOptions& options, const Lineage& lineage,
                             TrainerObserver& observer);

}  // namespace thinwire
