// An output folder that is one run's, for all its ranks.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "collectives/communicator.h"
#include "launch/run_lock.h"

namespace thinwire {

// What to do while the lock is another run's.
struct LockWait {
  std::function<void(const std::string&)> say;  // told what is waited for, on rank 0
  std::function<bool()> stop_requested;         // on any rank: ends the wait (exit 75)
  std::string have;                             // "no checkpoint yet": what the run has then
};

// What a rank has of an output folder that is its run's.
struct HeldFolder {
  std::unique_ptr<RunLock> lock;  // on rank 0
  std::string token;              // of the run, which its lock file shows
};

// Collective, before anything in `folder` is touched: makes the folder, takes its lock on rank 0,
// waiting if need be, and lets every rank look for it.
//
// Throws `AgreedError` (exit 73) on every rank where another run has the folder, where it cannot be
// written, and where some ranks do not see in it what rank 0 wrote.
HeldFolder take_run_lock(Communicator& communicator, const std::string& folder, RunLockParts parts,
                         const LockWait& wait);

// Whether the lock file in the folder names another run than that of this token.
bool belongs_to_another(const std::string& folder, const std::string& token);

}  // namespace thinwire
