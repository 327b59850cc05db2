#include "runtime/watch/wire.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

namespace thinwire::watch {
namespace {

// A line is some hundred bytes.
constexpr std::size_t kLongestLine = 1 << 16;

}  // namespace

void Wire::send(std::string line) {
  std::replace(line.begin(), line.end(), '\n', ' ');
  unsent_ += line + '\n';
  flush();
}

void Wire::flush() {
  while (open() && !unsent_.empty()) {
    const ssize_t count =
        ::send(socket_.get(), unsent_.data(), unsent_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOTCONN)) return;
    if (count < 0) {
      // What the peer has sent before is still to be read: reading will see the end.
      unsent_.clear();
      return;
    }
    unsent_.erase(0, static_cast<std::size_t>(count));
  }
}

void Wire::finish_sending() {
  flush();
  if (open()) ::shutdown(socket_.get(), SHUT_WR);
}

std::vector<std::string> Wire::receive() {
  std::vector<std::string> lines;
  char buffer[4096];
  for (std::size_t taken = 0; open() && taken < kLongestLine;) {
    const ssize_t count = ::recv(socket_.get(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && net::again(errno)) break;
    if (count <= 0) {
      close();
      break;
    }
    taken += static_cast<std::size_t>(count);
    partial_.append(buffer, static_cast<std::size_t>(count));
    std::size_t begin = 0;
    for (auto end = partial_.find('\n'); end != std::string::npos;
         end = partial_.find('\n', begin)) {
      lines.push_back(partial_.substr(begin, end - begin));
      begin = end + 1;
    }
    partial_.erase(0, begin);
    if (partial_.size() > kLongestLine) close();
  }
  return lines;
}

}  // namespace thinwire::watch
