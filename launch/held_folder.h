// An output folder that belongs to one run, as all ranks of that run see it.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "collectives/communicator.h"
#include "launch/run_lock.h"

namespace thinwire {

// What to do while another run has the lock.
struct LockWait {
  std::function<void(const std::string&)> say;  // on rank 0: tells the user what is waited for
  std::function<bool()> stop_requested;         // true on any rank ends the wait (exit 75)
  std::string have;  // what the run leaves if it is stopped so, e.g. "no checkpoint yet"
};

// What a rank holds once the output folder belongs to its run.
struct HeldFolder {
  std::unique_ptr<RunLock> lock;  // on rank 0
  std::string token;              // of the run; its lock file shows the same
};

// Collective. Call it before anything in `folder` is touched: it makes the folder, takes its lock
// on rank 0, waiting if need be, and has every rank check that it sees this lock.
//
// Throws `AgreedError` (exit 73) on every rank where another run has the folder, where it cannot be
// written, and where some ranks do not see in it what rank 0 wrote.
HeldFolder take_run_lock(Communicator& communicator, const std::string& folder, RunLockParts parts,
                         const LockWait& wait);

// Whether the lock file in the folder names a run other than the one with this token.
bool belongs_to_another(const std::string& folder, const std::string& token);

}  // namespace thinwire
