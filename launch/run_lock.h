// Sees to it that an output folder belongs to one run at a time.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "collectives/communicator.h"
#include "launch/lock_file.h"

namespace thinwire {

// Nanoseconds since 1970 by the clock of a file server.
using FileTime = std::chrono::nanoseconds;

// What a lock works with: this process, and the questions that it asks the system.
struct RunLockParts {
  LockOwner self;
  // Whether this process, which is of this boot and process table, still runs.
  std::function<bool(const LockOwner&)> is_running;
  // flock(LOCK_EX | LOCK_NB): 0, or what errno says.
  std::function<int(int descriptor)> flock;
  // The time by the clock of the folder's file server, which may differ from this host's.
  std::function<FileTime(const std::string& folder)> server_time;
  // lock_file::write.
  std::function<int(int descriptor, const LockOwner&)> write;
  std::chrono::milliseconds renewal{10'000};     // between two signs of life
  std::chrono::milliseconds dead_after{60'000};  // without a sign of life
  // How long two runs may take to see what the other one wrote.
  std::chrono::milliseconds settling{2'000};
};

// Of this process and this system.
RunLockParts system_lock_parts();

// The lock of an output folder: the file run.lock in it, locked with flock, which names its owner
// and whose modification time is the owner's sign of life.
//
// A run that cannot get the flock is refused. A run that gets it knows that no process of this host
// has the folder. The owner that the file names may still run on another host, because some file
// systems do not share flock between hosts: it counts as dead after a minute without a sign of
// life. Where there is no flock at all, an owner of this boot counts as dead if its process does
// not run.
class RunLock {
 public:
  RunLock(std::string folder, RunLockParts parts);
  // Gives the folder back if this run has it.
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  // Looks at the lock once and never waits. True: the folder belongs to this run from now on.
  // False: `waiting` says what has to change first; try again in a second. Throws `Error` (exit 73)
  // naming the run that has the folder, or what is in the way.
  bool try_to_take();
  const std::string& waiting() const { return waiting_; }
  const std::string& token() const { return parts_.self.token; }

  // Throws `Error` (exit 73) if another run has taken the folder from this one. That happens where
  // this run stood still for longer than `dead_after`, or where the folder was removed and made
  // anew. It costs one look at the file's state, so it can be asked in each step and before each
  // write.
  void require_mine();
  // What happened to the lock without harm, or empty. It becomes empty once it was read.
  std::string take_warning();

 private:
  class Keeper;
  struct Look;

  bool decide(Look& look);
  bool wait_for_life(Look& look, const std::string& who);
  bool take(Look& look);
  bool confirm();
  bool keep();
  bool wait(std::string what);
  bool is_of_this_table(const LockOwner& owner) const;
  [[noreturn]] void refuse_for(const LockOwner& owner) const;

  std::string folder_;
  RunLockParts parts_;
  std::string waiting_;
  // The lock file that this run waits to see changed, and since when, by the server's clock.
  struct Watched {
    std::string content;
    FileTime last{};
    FileTime since{};
  };
  std::optional<Watched> watched_;
  std::optional<Clock::time_point> unread_since_;
  std::optional<Clock::time_point> taken_;  // when; it is still to be confirmed
  std::shared_ptr<Keeper> keeper_;          // shared with its thread, which may outlive this
  std::thread thread_;
};

}  // namespace thinwire
