// Saving a checkpoint so that no crash or full disk loses the last one, and finding one that is
// whole.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/state_file.h"

namespace thinwire {

struct SaveRequest {
  std::string root;                         // the folder of all checkpoints, shared by the ranks
  std::int64_t step = 0;                    // >= 0
  std::map<std::string, std::string> info;  // free-form: the run's configuration
  int keep = 2;                             // complete checkpoints to keep, >= 1
};

// The same on every rank.
struct SaveResult {
  bool complete = false;  // the checkpoint is on the disk, whole
  std::string folder;
  std::string warning;  // why it is not, or what could not be tidied up; empty if all went well
};

// Collective: every rank passes its own state, and the same request. `model` is saved by its plain
// names as rank 0 holds it; what is `averaged` or `ranged` in either is saved per rank.
//
// Does not throw when a file cannot be written, on any rank: the unfinished folder is removed as
// far as possible, earlier checkpoints stay, and every rank gets the same warning. Throws what the
// communicator throws.
//
// A complete checkpoint of the same step is kept as it is; an unfinished or damaged one is
// replaced. After success the `keep` newest complete ones up to this step stay; older ones are
// removed, and so are older unfinished ones. Those of later steps are never touched.
SaveResult save_checkpoint(FileSystem& files, Communicator& communicator,
                           const SaveRequest& request, const StateCollector& model,
                           const StateCollector& other);

// Reads every byte of the checkpoint in `folder`. Throws `DataError` naming the file, where
// possible the tensor, and what is wrong.
Manifest verify_checkpoint(FileSystem& files, const std::string& folder);

struct FoundCheckpoint {
  std::string folder;
  Manifest manifest;
};

struct LatestCheckpoint {
  std::optional<FoundCheckpoint> found;
  std::vector<std::string> rejected;  // a sentence for each newer one that is unfinished or damaged
};

// The newest checkpoint below `root` that verifies. No folder `root`: none found.
LatestCheckpoint find_latest_checkpoint(FileSystem& files, const std::string& root);

}  // namespace thinwire
