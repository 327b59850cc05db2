// Restoring a run from a checkpoint, at the same or at another number of ranks.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "collectives/base/state.h"
#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/manifest.h"

namespace thinwire {

// Shows a visitor all of some state.
using ShowState = std::function<void(StateVisitor&)>;

// Copies the checkpoint in `folder` into the state that `show_model` and `show_other` show, in
// place: counters while they are shown, tensors before it returns. Each rank calls it for itself.
//
//   replicated  exact.
//   averaged    at the checkpoint's world size, this rank's own state; at another world size, the
//               mean over the old ranks, formed in float64, or rank 0's where it is of integers.
//   ranged      from the pieces of all old ranks; what no piece covers is zero.
//
// Files are read one at a time and checked against `manifest`. At the same world size and with the
// same ranges, of the ranks' files only this rank's is read. Returns warnings: averaged or ranged
// state that the checkpoint lacks (it is set to zero), and saved state that nobody asked for.
// Throws `DataError` where replicated state or a counter is missing, and where a shape or dtype is
// not the saved one; the state is partly restored then.
std::vector<std::string> load_checkpoint(FileSystem& files, const std::string& folder,
                                         const Manifest& manifest, int rank, int world_size,
                                         const ShowState& show_model, const ShowState& show_other);

}  // namespace thinwire
