#include "launch/signals.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace thinwire {

SignalWatcher::SignalWatcher() {
  sigemptyset(&watched_);
  for (const int number : {SIGUSR1, SIGTERM, SIGINT}) sigaddset(&watched_, number);
  pthread_sigmask(SIG_BLOCK, &watched_, &previous_);
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGXFSZ, &ignore, &previous_limit_);
  thread_ = std::thread([this] { watch(); });
}

SignalWatcher::~SignalWatcher() {
  closing_ = true;
  pthread_kill(thread_.native_handle(), SIGUSR1);
  thread_.join();
  // A SIGUSR1 that nobody took would now kill the process: what it asks for has happened.
  sigset_t harmless;
  sigemptyset(&harmless);
  sigaddset(&harmless, SIGUSR1);
  const timespec no_time{};
  sigtimedwait(&harmless, nullptr, &no_time);
  pthread_sigmask(SIG_SETMASK, &previous_, nullptr);
  sigaction(SIGXFSZ, &previous_limit_, nullptr);
}

void SignalWatcher::watch() {
  bool ending = false;
  while (true) {
    int number = 0;
    const int error = sigwait(&watched_, &number);
    if (closing_) return;
    if (error != 0) continue;
    const char* name = sigabbrev_np(number);
    if (given_up_ && !std::exchange(ending, true)) continue;
    if (!requested_.exchange(true)) {
      std::fprintf(stderr, "thinwire: SIG%s: checkpoint and stop at the next step\n", name);
    } else if (number != SIGUSR1) {
      std::fprintf(stderr, "thinwire: SIG%s while stopping: exit at once\n", name);
      std::_Exit(128 + number);
    }
  }
}

}  // namespace thinwire
