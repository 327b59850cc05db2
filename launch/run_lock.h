// That an output folder is one run's at a time.
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

// What a lock works with: this process, and what it asks the system.
struct RunLockParts {
  LockOwner self;
  // Whether a process of this boot and process table still runs.
  std::function<bool(const LockOwner&)> is_running;
  // flock(LOCK_EX | LOCK_NB): 0, or what errno says.
  std::function<int(int descriptor)> flock;
  // The time of the server of this folder, which is not that of this host.
  std::function<FileTime(const std::string& folder)> server_time;
  // lock_file::write.
  std::function<int(int descriptor, const LockOwner&)> write;
  std::chrono::milliseconds renewal{10'000};     // between signs of life
  std::chrono::milliseconds dead_after{60'000};  // without one
  // How long two runs may take to see what the other one wrote.
  std::chrono::milliseconds settling{2'000};
};

// Of this process and this system.
RunLockParts system_lock_parts();

// The lock of an output folder: the file run.lock in it, locked with flock, which names its owner
// and whose modification time is the owner's sign of life.
//
// Who cannot get the flock is refused. Where it can be had nobody on this host lives in the folder;
// an owner of another boot may run on a host with which the file system does not share flock, and
// is dead after a minute without a sign of life. Where there is no flock at all, an owner on this
// boot is dead if its process is.
class RunLock {
 public:
  RunLock(std::string folder, RunLockParts parts);
  // Gives the folder back, if it is this run's.
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  // One look at the lock, never a wait: true if it is this run's from now on, false if `waiting`
  // says for what to come again in a second. Throws `Error` (exit 73) naming the other run, or what
  // is in the way.
  bool try_to_take();
  const std::string& waiting() const { return waiting_; }
  const std::string& token() const { return parts_.self.token; }

  // Throws `Error` (exit 73) if another run has taken the folder from this one: that stood still,
  // or the folder was removed and made anew. One look at the file's state, so cheap enough for each
  // step and before each write.
  void require_mine();
  // Empty, or what happened to the lock and did no harm; becomes empty once it was read.
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
  // What this run waits to see change, since when by the server's clock.
  struct Watched {
    std::string content;
    FileTime last{};
    FileTime since{};
  };
  std::optional<Watched> watched_;
  std::optional<Clock::time_point> unread_since_;
  std::optional<Clock::time_point> taken_;  // and to be confirmed
  std::shared_ptr<Keeper> keeper_;          // shared with its thread, which may outlive this
  std::thread thread_;
};

}  // namespace thinwire
