#include "runtime/watch/wire.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <system_error>

#include "runtime/base/error.h"

namespace thinwire::watch {
namespace {

// A line is some hundred bytes; a stranger that sends more is no rank.
constexpr std::size_t kLongestLine = 1 << 16;

[[noreturn]] void fail(const char* what) {
  throw IoError(fmt::format("cannot {}: {}; check the limits on open files and the network", what,
                            std::generic_category().message(errno)));
}

void set_option(const Descriptor& socket, int level, int option) {
  const int on = 1;
  ::setsockopt(socket.get(), level, option, &on, sizeof on);
}

}  // namespace

void Descriptor::reset() {
  if (value_ >= 0) ::close(value_);
  value_ = -1;
}

void Wire::send(std::string line) {
  std::replace(line.begin(), line.end(), '\n', ' ');
  unsent_ += line + '\n';
  flush();
}

void Wire::flush() {
  while (open() && !unsent_.empty()) {
    const ssize_t count = ::send(socket_.get(), unsent_.data(), unsent_.size(), MSG_NOSIGNAL);
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
  while (open()) {
    const ssize_t count = ::recv(socket_.get(), buffer, sizeof buffer, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
    if (count <= 0) {
      close();
      break;
    }
    partial_.append(buffer, static_cast<std::size_t>(count));
    for (auto end = partial_.find('\n'); end != std::string::npos; end = partial_.find('\n')) {
      lines.push_back(partial_.substr(0, end));
      partial_.erase(0, end + 1);
    }
    if (partial_.size() > kLongestLine) close();
  }
  return lines;
}

Descriptor listen_anywhere() {
  Descriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!listener.open()) fail("make a socket");
  sockaddr_in any{};
  any.sin_family = AF_INET;
  any.sin_addr.s_addr = htonl(INADDR_ANY);
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&any), sizeof any) < 0 ||
      ::listen(listener.get(), SOMAXCONN) < 0) {
    fail("listen on a port");
  }
  return listener;
}

std::uint16_t port_of(const Descriptor& listener) {
  sockaddr_in bound{};
  socklen_t length = sizeof bound;
  if (::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&bound), &length) < 0) {
    fail("see the port of a socket");
  }
  return ntohs(bound.sin_port);
}

Descriptor accept_from(const Descriptor& listener) {
  Descriptor socket(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (socket.open()) set_option(socket, IPPROTO_TCP, TCP_NODELAY);
  return socket;
}

Descriptor begin_connect(const std::string& address, std::uint16_t port) {
  sockaddr_in peer{};
  peer.sin_family = AF_INET;
  peer.sin_port = htons(port);
  if (::inet_pton(AF_INET, address.c_str(), &peer.sin_addr) != 1) return Descriptor();
  Descriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.open()) return socket;
  set_option(socket, IPPROTO_TCP, TCP_NODELAY);
  const auto* where = reinterpret_cast<const sockaddr*>(&peer);
  if (::connect(socket.get(), where, sizeof peer) < 0 && errno != EINPROGRESS) socket.reset();
  return socket;
}

std::vector<std::string> own_addresses() {
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) < 0) fail("list the addresses of this machine");
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(list, &::freeifaddrs);
  std::vector<std::string> addresses;
  std::vector<std::string> loopback;
  for (const ifaddrs* entry = list; entry; entry = entry->ifa_next) {
    if (!entry->ifa_addr || entry->ifa_addr->sa_family != AF_INET) continue;
    if ((entry->ifa_flags & IFF_UP) == 0) continue;
    char text[INET_ADDRSTRLEN];
    const auto* address = reinterpret_cast<const sockaddr_in*>(entry->ifa_addr);
    if (!::inet_ntop(AF_INET, &address->sin_addr, text, sizeof text)) continue;
    ((entry->ifa_flags & IFF_LOOPBACK) != 0 ? loopback : addresses).emplace_back(text);
  }
  addresses.insert(addresses.end(), loopback.begin(), loopback.end());
  return addresses;
}

}  // namespace thinwire::watch
