// Signals that ask a run to stop.
#pragma once

#include <csignal>

#include <atomic>
#include <thread>

namespace thinwire {

// Turns SIGUSR1, SIGTERM and SIGINT into a request to checkpoint and stop.
//
// The constructor blocks them in its thread, so construct one before any other thread exists
// (before MPI is initialised): threads inherit what is blocked. The first signal is announced on
// stderr. A SIGTERM or SIGINT that follows ends the process at once with 128 + its number. The
// destructor gives the constructing thread its signals back. At most one at a time.
//
// SIGXFSZ is ignored meanwhile: a file that meets a limit on its size is an error of the write, as
// on a full disk, not the end of the process.
class SignalWatcher {
 public:
  SignalWatcher();
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

  // Whether a signal came. Safe from any thread.
  bool requested() const { return requested_; }
  // The run ends and nothing can be saved: a first SIGTERM or SIGINT from now on asks for nothing
  // and is not announced. Safe from any thread.
  void give_up() { given_up_ = true; }

 private:
  void watch();

  sigset_t watched_{};
  sigset_t previous_{};
  struct sigaction previous_limit_ {};
  std::atomic<bool> requested_{false};
  std::atomic<bool> given_up_{false};
  std::atomic<bool> closing_{false};
  std::thread thread_;  // last: it uses the others
};

}  // namespace thinwire
