#include "launch/output.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

// Whether all of `text` was written; errno says why not.
bool write_all(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<std::size_t>(written));
    } else if (errno == EAGAIN) {
      // Whoever shares this pipe or terminal made it non-blocking.
      pollfd room{STDOUT_FILENO, POLLOUT, 0};
      poll(&room, 1, -1);
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

}  // namespace

void occupy_standard_descriptors() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(descriptor, F_GETFD) == -1 && errno == EBADF) open("/dev/null", O_RDONLY);
  }
}

void print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

void require_printed() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  throw Error(ExitCode::cannot_write, "cannot write to stdout; check where it goes");
}

void RunOutput::write(const std::string& text) {
  if (write_all(text) || said_) return;
  said_ = true;
  std::fprintf(
      stderr,
      "thinwire: warning: cannot write to stdout: %s; the run goes on, and its numbers are "
      "in metrics.jsonl in the output folder\n",
      std::strerror(errno));
}

}  // namespace thinwire
