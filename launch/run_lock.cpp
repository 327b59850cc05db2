#include "launch/run_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/file_descriptor.h"
#include "collectives/base/text.h"
#include "collectives/base/thread.h"

namespace thinwire {
namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kAttempts = 100;
// How long the end of a run waits for a file server.
constexpr seconds kPatience{5};

std::string reason(int error) {
  return std::generic_category().message(error);
}

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ExitCode::cannot_write, message);
}

[[noreturn]] void cannot(const std::string& what, const std::string& path, int error) {
  refuse(fmt::format(
      "cannot {} '{}': {}; check the folder and its disk, or give another with --output", what,
      path, reason(error)));
}

FileTime modified(const struct stat& status) {
  return seconds(status.st_mtim.tv_sec) + std::chrono::nanoseconds(status.st_mtim.tv_nsec);
}

bool same_file(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

// There is no flock on this file system. A server that is short of locks says the same.
bool has_no_flock(int error) {
  return error == ENOLCK || error == EOPNOTSUPP || error == ENOTSUP || error == ENOSYS;
}

}  // namespace

RunLockParts system_lock_parts() {
  RunLockParts parts;
  parts.self = this_process();
  parts.is_running = [](const LockOwner& owner) {
    if (::kill(static_cast<pid_t>(owner.process), 0) < 0 && errno == ESRCH) return false;
    const std::int64_t start = start_of_process(std::to_string(owner.process));
    return start == 0 || start == owner.process_start;
  };
  parts.flock = [](int descriptor) {
    return uninterrupted([&] { return ::flock(descriptor, LOCK_EX | LOCK_NB); }) < 0 ? errno : 0;
  };
  parts.server_time = [](const std::string& folder) {
    // The server gives a file that is touched its own time. One name for all runs: what a killed
    // one left is used again.
    const std::string path = lock_file::path_of(folder) + ".time";
    for (int attempt = 0;; ++attempt) {
      const FileDescriptor file = lock_file::open(path, O_WRONLY | O_CREAT);
      struct stat status {};
      if (!file.open() || ::fstat(file.get(), &status) < 0) cannot("make", path, errno);
      if (!S_ISREG(status.st_mode) || status.st_size != 0) {
        refuse(
            fmt::format("'{}' is in the way and holds something; move it away, or give another "
                        "folder with --output",
                        path));
      }
      const bool touched =
          ::futimens(file.get(), nullptr) == 0 && ::fstat(file.get(), &status) == 0;
      // Another run that asks too may have removed it, which a network file system minds.
      if (!touched && attempt >= kAttempts) cannot("touch", path, errno);
      ::unlink(path.c_str());
      if (touched) return modified(status);
    }
  };
  parts.write = lock_file::write;
  return parts;
}

// What keeps a lock that was taken, on a thread of its own.
class RunLock::Keeper {
 public:
  Keeper(std::string folder, RunLockParts parts, FileDescriptor file)
      : folder_(std::move(folder)), parts_(std::move(parts)), file_(std::move(file)) {
    remember();
  }

  // Until `close`.
  void run() {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, parts_.renewal, [&] { return closing_; })) {
      lock.unlock();
      renew();
      lock.lock();
    }
    closed_ = true;
    changed_.notify_all();
  }

  // Whether the thread of `run` has ended.
  bool close() {
    std::unique_lock lock(mutex_);
    closing_ = true;
    changed_.notify_all();
    return changed_.wait_for(lock, kPatience, [&] { return closed_; });
  }

  // Looks whose the file is where it is no longer as this run left it: gone, another one, or
  // written to.
  void look() {
    struct stat there {};
    const bool found = ::lstat(lock_file::path_of(folder_).c_str(), &there) == 0;
    {
      const std::lock_guard lock(mutex_);
      if (!lost_.empty()) return;
      const bool as_left = found && same_file(there, left_) && modified(there) == modified(left_);
      // A network file system may show what it remembers until the file is opened.
      if (as_left && Clock::now() - seen_ <= 3 * parts_.renewal) return;
    }
    renew();
  }

  // Looks whose the file is, and shows a sign of life.
  void renew() {
    const std::lock_guard files(files_);
    if (!lost().empty()) return;
    const std::string path = lock_file::path_of(folder_);
    FileDescriptor found = lock_file::open(path, O_RDWR);
    if (!found.open()) {
      if (errno == ENOENT || errno == ENOTDIR) return make_anew();
      return warn(
          fmt::format("cannot open '{}': {}; other runs may take the folder", path, reason(errno)));
    }
    const std::string text = text_of(found);
    const auto owner = lock_file::parse(text);
    if (owner && owner->token != parts_.self.token) return lose(describe(*owner));
    if (!is_held(found)) {
      // Another run's that has not written it yet, or no lock at all; or a copy of this one's.
      if (!owner && !lock_file::is_damaged(text)) {
        return warn(fmt::format("'{}' was replaced by another file", path));
      }
      const int error = parts_.flock(found.get());
      if (error == EWOULDBLOCK) return lose("it has locked '" + path + "'");
      if (error != 0 && !(owner && has_no_flock(error))) {
        return warn(fmt::format("'{}' was replaced by another file", path));
      }
      file_ = std::move(found);
    }
    if (!owner) parts_.write(file_.get(), parts_.self);
    if (::futimens(file_.get(), nullptr) < 0) {
      return warn(
          fmt::format("cannot show in '{}' that this run lives: {}; other runs may take "
                      "the folder",
                      path, reason(errno)));
    }
    remember();
  }

  bool is_mine() {
    const FileDescriptor found = lock_file::open(lock_file::path_of(folder_), O_RDONLY);
    const auto owner = found.open() ? lock_file::parse(text_of(found)) : std::nullopt;
    if (owner && owner->token != parts_.self.token) lose(describe(*owner));
    return owner && owner->token == parts_.self.token && is_held(found);
  }

  void remove() {
    if (is_mine()) ::unlink(lock_file::path_of(folder_).c_str());
    file_.reset();
  }

  // Empty, or who has it.
  std::string lost() {
    const std::lock_guard lock(mutex_);
    return lost_;
  }
  std::string take_warning() {
    const std::lock_guard lock(mutex_);
    return std::exchange(warning_, {});
  }

 private:
  bool is_held(const FileDescriptor& other) const {
    struct stat here {};
    struct stat there {};
    return ::fstat(file_.get(), &here) == 0 && ::fstat(other.get(), &there) == 0 &&
           same_file(here, there);
  }

  // Where a lock keeps others from reading, only the descriptor that has it reads.
  std::string text_of(const FileDescriptor& found) const {
    return lock_file::read(is_held(found) ? file_.get() : found.get()).text;
  }

  // How this run leaves the file.
  void remember() {
    struct stat left {};
    ::fstat(file_.get(), &left);
    const std::lock_guard lock(mutex_);
    left_ = left;
    seen_ = Clock::now();
  }

  void make_anew() {
    const std::string path = lock_file::path_of(folder_);
    std::error_code error;
    std::filesystem::create_directories(folder_, error);
    FileDescriptor made = lock_file::open(path, O_RDWR | O_CREAT | O_EXCL);
    if (!made.open()) {
      if (errno == EEXIST) return;  // somebody was faster: the next look tells who
      return warn(fmt::format("'{}' was removed and cannot be made anew: {}", path, reason(errno)));
    }
    if (parts_.flock(made.get()) == EWOULDBLOCK) return;  // just found by another run
    parts_.write(made.get(), parts_.self);
    file_ = std::move(made);
    warn(fmt::format("'{}' was removed while this run goes on; made anew", path));
    remember();
  }

  // For good.
  void lose(const std::string& to) {
    const std::lock_guard lock(mutex_);
    if (!lost_.empty()) return;
    lost_ = fmt::format(
        "'{}' belongs to another run now: {}; this one ends, so that they do not write into each "
        "other's files",
        folder_, to);
  }

  void warn(const std::string& text) {
    const std::lock_guard lock(mutex_);
    if (text != std::exchange(last_warning_, text)) warning_ = text;
  }

  const std::string folder_;
  const RunLockParts parts_;
  std::mutex files_;  // held over calls that a file server may delay
  FileDescriptor file_;

  std::mutex mutex_;  // guards the rest
  std::condition_variable changed_;
  bool closing_ = false;
  bool closed_ = false;
  std::string lost_;
  std::string warning_;
  std::string last_warning_;
  struct stat left_ {};  // the file after the last sign of life
  Clock::time_point seen_;
};

struct RunLock::Look {
  FileDescriptor file;
  struct stat status {};
  bool created = false;
  bool locked = false;
  bool contested = false;  // another run may take it at the same time
  std::string content;
};

RunLock::RunLock(std::string folder, RunLockParts parts)
    : folder_(std::move(folder)), parts_(std::move(parts)) {}

RunLock::~RunLock() {
  if (!keeper_) return;
  if (thread_.joinable()) {
    if (!keeper_->close()) {
      thread_.detach();  // it hangs in a call to a file server
      return;
    }
    thread_.join();
  }
  keeper_->remove();
}

bool RunLock::wait(std::string what) {
  waiting_ = std::move(what);
  return false;
}

bool RunLock::try_to_take() {
  if (taken_) return confirm();
  const std::string path = lock_file::path_of(folder_);
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    Look look;
    if (::lstat(path.c_str(), &look.status) == 0 && !S_ISREG(look.status.st_mode)) {
      refuse(
          fmt::format("'{}' is in the way of this run's lock and is no file; move it away, or "
                      "give another folder with --output",
                      path));
    }
    look.file = lock_file::open(path, O_RDWR | O_CREAT | O_EXCL);
    look.created = look.file.open();
    if (!look.created) {
      if (errno != EEXIST) cannot("make", path, errno);
      look.file = lock_file::open(path, O_RDWR);
    }
    if (!look.file.open()) {
      if (errno == ENOENT) continue;
      cannot("open", path, errno);
    }
    const int error = parts_.flock(look.file.get());
    if (error != 0 && error != EWOULDBLOCK && !has_no_flock(error)) cannot("lock", path, error);
    struct stat there {};
    const bool is_there = ::fstat(look.file.get(), &look.status) == 0 &&
                          ::lstat(path.c_str(), &there) == 0 && same_file(look.status, there);
    // Its owner removed it at its end: what is locked is no longer there for anybody.
    if (!is_there) continue;
    look.locked = error == 0;
    look.content = lock_file::read(look.file.get()).text;
    if (error != EWOULDBLOCK) return decide(look);

    // The text may still be that of the one before.
    const auto owner = lock_file::parse(look.content);
    if (owner && !(is_of_this_table(*owner) && !parts_.is_running(*owner))) refuse_for(*owner);
    if (!unread_since_) unread_since_ = Clock::now();
    if (Clock::now() - *unread_since_ < parts_.settling) {
      return wait(fmt::format("another run is taking '{}'", folder_));
    }
    refuse(
        fmt::format("'{}' belongs to another run, which has locked '{}'; wait until it has "
                    "ended, or give another folder with --output",
                    folder_, path));
  }
  return wait(fmt::format("runs start and end in '{}'", folder_));
}

void RunLock::refuse_for(const LockOwner& owner) const {
  const bool elsewhere = owner.boot != parts_.self.boot;
  refuse(fmt::format(
      "'{}' belongs to another run: {}; wait until it has ended, {}or give another "
      "folder with --output",
      folder_, describe(owner),
      elsewhere ? fmt::format("remove '{}' if you know that it has, ", lock_file::path_of(folder_))
                : ""));
}

bool RunLock::is_of_this_table(const LockOwner& owner) const {
  return !owner.boot.empty() && owner.boot == parts_.self.boot &&
         owner.process_table == parts_.self.process_table;
}

// Whose the folder is, by a file that nobody on this host has locked.
bool RunLock::decide(Look& look) {
  if (look.created) return take(look);
  const auto owner = lock_file::parse(look.content);
  if (!owner && !lock_file::is_damaged(look.content)) {
    refuse(
        fmt::format("'{}' is in the way of this run's lock and holds something else; move it "
                    "away, or give another folder with --output",
                    lock_file::path_of(folder_)));
  }
  if (!owner) {
    if (!look.locked) return wait_for_life(look, "a run whose lock is damaged");
    // On a host that does not share flock a run may be about to write it.
    const FileTime age = parts_.server_time(folder_) - modified(look.status);
    if (age >= FileTime::zero() && age < parts_.settling) {
      return wait(fmt::format("another run may be taking '{}'", folder_));
    }
    return take(look);
  }
  if (look.locked && !owner->boot.empty() && owner->boot == parts_.self.boot) return take(look);
  if (!look.locked && is_of_this_table(*owner)) {
    if (parts_.is_running(*owner)) refuse_for(*owner);
    look.contested = true;
    return take(look);
  }
  return wait_for_life(look, describe(*owner));
}

bool RunLock::wait_for_life(Look& look, const std::string& who) {
  const FileTime now = parts_.server_time(folder_);
  const FileTime last = modified(look.status);
  if (!watched_) {
    watched_ = {look.content, last, now};
    const FileTime left = parts_.dead_after - std::max(now - last, FileTime::zero());
    waiting_ = fmt::format("'{}' was last used by {}; waiting {} s for a sign of life of it",
                           folder_, who, duration_cast<seconds>(left).count() + 1);
  }
  if (watched_->content != look.content || watched_->last != last) {
    if (const auto owner = lock_file::parse(look.content)) refuse_for(*owner);
    refuse(fmt::format("'{}' is being taken by another run; give another folder with --output",
                       folder_));
  }
  // A time in the future is no sign of life for longer than any other.
  if (now - last < parts_.dead_after && now - watched_->since < parts_.dead_after) return false;
  look.contested = true;
  return take(look);
}

bool RunLock::take(Look& look) {
  const std::string path = lock_file::path_of(folder_);
  if (const int error = parts_.write(look.file.get(), parts_.self)) {
    if (look.created) ::unlink(path.c_str());
    cannot("write", path, error);
  }
  keeper_ = std::make_shared<Keeper>(folder_, parts_, std::move(look.file));
  if (!look.contested) return keep();
  taken_ = Clock::now();  // not before: to write may have taken long
  return confirm();
}

// Where flock does not decide, two runs may have found the same dead owner: the last one that wrote
// has the folder, and the other sees it after a while.
bool RunLock::confirm() {
  if (Clock::now() - *taken_ < parts_.settling) {
    return wait(fmt::format("took '{}', making sure that no other run did", folder_));
  }
  taken_.reset();
  if (keeper_->is_mine()) return keep();
  const std::string lost = keeper_->lost();
  keeper_.reset();
  refuse(lost.empty()
             ? fmt::format("another run has taken '{}'; give another folder with --output", folder_)
             : lost);
}

bool RunLock::keep() {
  thread_ = make_thread([keeper = keeper_] { keeper->run(); });
  return true;
}

void RunLock::require_mine() {
  // Each time: no clock tells for how long a host was suspended.
  keeper_->look();
  const std::string lost = keeper_->lost();
  if (!lost.empty()) refuse(lost);
}

std::string RunLock::take_warning() {
  return keeper_->take_warning();
}

}  // namespace thinwire
