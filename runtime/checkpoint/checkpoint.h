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
  // Keys of `info`. A complete checkpoint of the same step is this run's if it has the same values
  // for them, or lacks the same ones.
  std::set<std::string> identity = {};
  int keep = 2;  // complete checkpoints to keep, >= 1
};

// The same on every rank.
struct SaveResult {
  bool complete = false;  // the checkpoint is on the disk, whole
  std::string folder;
  std::string warning;  // why it is not, or what could not be tidied up; empty if all went well
  bool lacks_space = false;  // it is not because there is no space: `make_room` may help
};

// Collective: every rank passes its own state, and the same request. Replicated state is saved
// once, as rank 0 holds it; that of `model` under its plain names. State of `model` and `other`
// that is `averaged` or `ranged` is saved per rank.
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

// For rank 0 after a save that lacked space. Removes unfinished checkpoints up to the step of that
// save, and the oldest complete checkpoint of this run before it, provided that there is a newer
// one which is whole. Returns what was removed, as the end of a sentence; empty if nothing was.
// Throws `IoError`.
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

// Why a checkpoint with this manifest is not wanted; empty if it is.
using Objection = std::function<std::string(const Manifest&)>;

// A folder whose manifest is whole, but to which there is an objection, or whose name gives another
// step than its manifest (a link or a copy).
struct StrangeCheckpoint {
  std::string folder;
  std::string why;  // "was made with ..."
};

// The newest checkpoint below `root` that verifies and is no stranger. Of strangers only the
// manifest is read. Where there is no folder `root` there is none. Throws `IoError` where a
// checkpoint cannot be read, because it may be whole.
LatestCheckpoint find_latest_checkpoint(FileSystem& files, const std::string& root,
                                        const Objection& objection = {});

// All strangers below `root`, newest first.
std::vector<StrangeCheckpoint> find_strangers(FileSystem& files, const std::string& root,
                                              const Objection& objection);

}  // namespace thinwire
