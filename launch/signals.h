// Signals that ask a run to stop.
#pragma once

#include <csignal>

#include <atomic>
#include <chrono>
#include <thread>

namespace thinwire {

// Turns SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP and SIGXCPU into a request to checkpoint and
// stop. Signals that the parent made this process ignore (nohup, a shell's `&`) stay ignored.
//
// The constructor blocks them in its thread, so construct one before any other thread exists
// (before MPI is initialised): threads inherit what is blocked. The first signal is announced on
// stderr. A SIGTERM or SIGINT that follows more than two seconds later ends the process at once
// with 128 + its number. Within those two seconds it counts as the same request, because one Ctrl-C
// may come twice: from the terminal, and from the launcher that passes it on (mpirun a second
// later). The destructor gives the constructing thread its signals back. At most one watcher exists
// at a time.
class SignalWatcher {
 public:
  // Signals that come within `one_request` of the first count as the same request. Throws `Error`
  // where no thread can be made.
  explicit SignalWatcher(std::chrono::milliseconds one_request = std::chrono::seconds(2));
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

  // Whether a signal came. Safe from any thread.
  bool requested() const { return taken_ != 0; }
  // To be called when the run ends and nothing can be saved any more: a first signal that comes
  // after this asks for nothing and is not announced. Safe from any thread.
  void give_up() { given_up_ = true; }
  // To be called when there is no run after all: stops watching and gives the signals back. A
  // signal that came meanwhile now has its usual effect.
  void release();

 private:
  void watch();
  void end_watch();

  const std::chrono::milliseconds one_request_;
  sigset_t watched_{};
  sigset_t previous_{};
  std::atomic<int> taken_{0};  // the first signal's number
  std::atomic<bool> given_up_{false};
  std::atomic<bool> closing_{false};
  std::thread thread_;  // last: it uses the others
};

// While this object lives, a write to a pipe that has no reader (SIGPIPE), or beyond the limit on
// the size of files (SIGXFSZ), fails with an error, as on a full disk, and does not end the
// process.
class WritesFailAlive {
 public:
  WritesFailAlive();
  ~WritesFailAlive();
  WritesFailAlive(const WritesFailAlive&) = delete;
  WritesFailAlive& operator=(const WritesFailAlive&) = delete;

 private:
  struct sigaction previous_pipe_ {};
  struct sigaction previous_limit_ {};
};

}  // namespace thinwire
