// Where a run's checkpoints are, and which one it continues from.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "runtime/base/state.h"
#include "runtime/buckets/gradient_buckets.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/trainer/options.h"

namespace thinwire {

class TrainerObserver;

// The folder of all checkpoints of a run.
std::string checkpoint_root(const TrainOptions& options);

// Shows every parameter as replicated state under its name.
void visit_parameters(const std::vector<Parameter>& parameters, StateVisitor& visitor);

// Throws `AgreedError` (exit 65) where the checkpoint was made with another seed, other data or
// another partition of them: its position in the data would mean other samples.
void require_same_lineage(const FoundCheckpoint& found,
                          const std::map<std::string, std::string>& lineage);

// "lr 0.1, was 0.05; ..." for what differs between two configurations, empty if nothing does. Where
// a run writes and how long it goes on are no differences.
std::string describe_changes(const std::map<std::string, std::string>& before,
                             const std::map<std::string, std::string>& now);

// Collective: rank 0 looks and verifies, every rank gets its choice. "auto": the newest checkpoint
// of this run that is whole, none if there is none. Anything else is a checkpoint's folder: every
// rank throws `AgreedError` where it is not whole. Says aloud what was rejected, and when the world
// size changes.
std::optional<FoundCheckpoint> choose_checkpoint(FileSystem& files, Communicator& communicator,
                                                 const TrainOptions& options,
                                                 TrainerObserver& observer);

}  // namespace thinwire
