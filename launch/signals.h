// Signals that ask a run to stop.
#pragma once

#include <csignal>

#include <atomic>
#include <chrono>
#include <thread>

namespace thinwire {

// Turns SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP and SIGXCPU into a request to checkpoint and
// stop. What the parent had this process ignore (nohup, a shell's `&`) stays ignored.
//
// The constructor blocks them in its thread, so construct one before any other thread exists
// (before MPI is initialised): threads inherit what is blocked. The first signal is announced on
// stderr. A SIGTERM or SIGINT that follows more than two seconds later ends the process at once
// with 128 + its number; until then it is the same request that came by two ways: Ctrl-C reaches
// the ranks and their launcher, which passes it on, mpirun after a second. The destructor gives the
// constructing thread its signals back. At most one at a time.
class SignalWatcher {
 public:
  // For as long as `one_request` all signals are one. Throws `Error` where no thread can be made.
  explicit SignalWatcher(std::chrono::milliseconds one_request = std::chrono::seconds(2));
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

  // Whether a signal came. Safe from any thread.
  bool requested() const { return taken_ != 0; }
  // The run ends and nothing can be saved: a first signal from now on asks for nothing and is not
  // announced. Safe from any thread.
  void give_up() { given_up_ = true; }
  // There is no run after all: gives the signals back. One that came does now what it would have
  // done. Nothing is watched any more.
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

// While it lives a write that nobody can read any more (SIGPIPE), or over a limit on a file's size
// (SIGXFSZ), is an error of the write, as on a full disk, not the end of the process.
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
