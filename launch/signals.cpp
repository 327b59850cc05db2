#include "launch/signals.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/thread.h"

namespace thinwire {
namespace {

bool ignored(int number) {
  struct sigaction now {};
  sigaction(number, nullptr, &now);
  return now.sa_handler == SIG_IGN;
}

}  // namespace

SignalWatcher::SignalWatcher(std::chrono::milliseconds one_request) : one_request_(one_request) {
  sigemptyset(&watched_);
  for (const int number : {SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP, SIGXCPU}) {
    if (!ignored(number)) sigaddset(&watched_, number);
  }
  // Also where it is ignored: SIGUSR1 is what ends the thread, and would be lost before it waits.
  sigset_t blocked = watched_;
  sigaddset(&blocked, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &blocked, &previous_);
  try {
    thread_ = make_thread([this] { watch(); });
  } catch (const Error&) {
    pthread_sigmask(SIG_SETMASK, &previous_, nullptr);
    throw;
  }
}

SignalWatcher::~SignalWatcher() {
  if (!thread_.joinable()) return;
  end_watch();
  // What nobody took would now kill the process, though what it asks for is about to happen.
  const timespec no_time{};
  while (sigtimedwait(&watched_, nullptr, &no_time) > 0) {
  }
  pthread_sigmask(SIG_SETMASK, &previous_, nullptr);
}

void SignalWatcher::release() {
  end_watch();
  pthread_sigmask(SIG_SETMASK, &previous_, nullptr);
  if (const int number = taken_) raise(number);
}

void SignalWatcher::end_watch() {
  closing_ = true;
  pthread_kill(thread_.native_handle(), SIGUSR1);
  thread_.join();
}

void SignalWatcher::watch() {
  sigset_t awaited = watched_;
  sigaddset(&awaited, SIGUSR1);
  bool ending = false;
  auto first = std::chrono::steady_clock::now();
  while (true) {
    int number = 0;
    const int error = sigwait(&awaited, &number);
    if (closing_) return;
    if (error != 0 || sigismember(&watched_, number) != 1) continue;
    const auto now = std::chrono::steady_clock::now();
    const char* name = sigabbrev_np(number);
    if (given_up_ && !std::exchange(ending, true)) continue;
    if (!requested()) {
      taken_ = number;
      first = now;
      if (given_up_) continue;  // the run ends anyway, and saves nothing
      std::fprintf(stderr, "thinwire: SIG%s: checkpoint and stop at the next step\n", name);
    } else if ((number == SIGTERM || number == SIGINT) && now - first > one_request_) {
      std::fprintf(stderr, "thinwire: SIG%s while stopping: exit at once\n", name);
      std::_Exit(128 + number);
    }
  }
}

WritesFailAlive::WritesFailAlive() {
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, &previous_pipe_);
  sigaction(SIGXFSZ, &ignore, &previous_limit_);
}

WritesFailAlive::~WritesFailAlive() {
  sigaction(SIGPIPE, &previous_pipe_, nullptr);
  sigaction(SIGXFSZ, &previous_limit_, nullptr);
}

}  // namespace thinwire
