// Saving a checkpoint so that no crash or full disk loses the last one, and finding one that is
// whole.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
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
  // Keys of `info` whose values a complete checkpoint of the same step must have, or lack, to be
  // this run's.
  std::set<std::string> identity = {};
  int keep = 2;  // complete checkpoints to keep, >= 1
};

// The same on every rank.
struct SaveResult {
  bool complete = false;  // the checkpoint is on the disk, whole
  std::string folder;
  std::string warning;  // why it is not, or what could not be tidied up; empty if all went well
  bool lacks_space = false;  // why it is not: `make_room` may help
};

// Collective: every rank passes its own state, and the same request. `model` is saved by its plain
// names as rank 0 holds it; what is `averaged` or `ranged` in either is saved per rank.
//
// Does not throw when a file cannot be written, on any rank: the unfinished folder is removed as
// far as possible, earlier checkpoints stay, and every rank gets the same warning. Throws what the
// communicator throws.
//
// A complete checkpoint of the same step is kept as it is, which is a success if it is this run's;
// an unfinished or damaged one is replaced. After success the `keep` newest complete ones up to
// this step stay; older ones are removed, and so are older unfinished ones. Those of later steps
// are never touched, nor is what a link in the place of a checkpoint's folder leads to.
SaveResult save_checkpoint(FileSystem& files, Communicator& communicator,
                           const SaveRequest& request, const StateCollector& model,
                           const StateCollector& other);

// For rank 0 after a save that lacked space: removes what is unfinished up to its step, and the
// oldest complete checkpoint of this run before it, if the newest is another one and whole. Returns
// what was removed as the end of a sentence, empty if nothing was. Throws `IoError`.
std::string make_room(FileSystem& files, const SaveRequest& request);

// Reads every byte of the checkpoint in `folder`. Throws `DataError` naming the file, where
// possible the tensor, and what is wrong.
Manifest verify_checkpoint(FileSystem& files, const std::string& folder);

struct FoundCheckpoint {
  std::string folder;
  Manifest manifest;
};

struct LatestCheckpoint {
  std::optional<FoundCheckpoint> found;
  // A sentence for each newer one that is unfinished, damaged or a stranger.
  std::vector<std::string> rejected;
  bool any_damaged = false;  // some of these were complete once
};

// What speaks against a checkpoint, by what its manifest says; empty if nothing does.
using Objection = std::function<std::string(const Manifest&)>;

// A folder whose manifest is whole, but against which something speaks, or which is called by
// another step than its manifest (a link or a copy).
struct StrangeCheckpoint {
  std::string folder;
  std::string why;  // "was made with ..."
};

// The newest checkpoint below `root` that verifies and is no stranger; of those only the manifest
// is read. No folder `root`: none found. Throws `IoError` where something cannot be read, which may
// be whole.
LatestCheckpoint find_latest_checkpoint(FileSystem& files, const std::string& root,
                                        const Objection& objection = {});

// All strangers below `root`, newest first.
std::vector<StrangeCheckpoint> find_strangers(FileSystem& files, const std::string& root,
                                              const Objection& objection);

}  // namespace thinwire
