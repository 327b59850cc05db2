#include "collectives/sockets/socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <system_error>

#include "runtime/base/error.h"

namespace thinwire::sockets {
namespace {

void set_option(const Descriptor& socket, int level, int name, int value) {
  // A kernel that lacks one of these still moves bytes.
  ::setsockopt(socket.get(), level, name, &value, sizeof value);
}

std::string numeric(const Address& address) {
  std::array<char, NI_MAXHOST> text{};
  if (::getnameinfo(address.get(), address.length, text.data(), text.size(), nullptr, 0,
                    NI_NUMERICHOST) != 0) {
    return "?";
  }
  return text.data();
}

// Blocks until `socket` is ready for `events`.
void await(const Descriptor& socket, short events, Deadline deadline) {
  pollfd entry{socket.get(), events, 0};
  for (;;) {
    const int ready = ::poll(&entry, 1, poll_timeout(deadline));
    if (ready > 0) return;
    if (ready == 0 && Clock::now() >= deadline) throw PeerLost("no answer in time");
    if (ready < 0 && errno != EINTR) throw PeerLost(error_text(errno));
  }
}

Descriptor connect_to(const Address& address, Deadline deadline) {
  Descriptor socket(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (socket.get() < 0) throw PeerLost(error_text(errno));
  if (::connect(socket.get(), address.get(), address.length) == 0) return socket;
  if (errno != EINPROGRESS) throw PeerLost(error_text(errno));
  await(socket, POLLOUT, deadline);
  int code = 0;
  socklen_t size = sizeof code;
  ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &code, &size);
  if (code != 0) throw PeerLost(error_text(code));
  return socket;
}

}  // namespace

void Descriptor::reset() {
  const int code = errno;  // of what made this one useless
  if (fd_ >= 0) ::close(fd_);
  errno = code;
  fd_ = -1;
}

std::string error_text(int code) {
  return std::generic_category().message(code);
}

std::vector<Address> resolve(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int code = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (code != 0) {
    throw Error(ExitCode::peer_lost, fmt::format("'{}' is no address ({}); give one that this "
                                                 "machine can resolve",
                                                 host, ::gai_strerror(code)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, ::freeaddrinfo);
  std::vector<Address> addresses;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    Address address;
    std::copy_n(reinterpret_cast<const char*>(entry->ai_addr), entry->ai_addrlen,
                reinterpret_cast<char*>(&address.storage));
    address.length = entry->ai_addrlen;
    addresses.push_back(address);
  }
  return addresses;
}

std::string local_address_towards(const std::string& host, int port) {
  for (const Address& address : resolve(host, std::max(port, 1))) {
    // Connecting a datagram socket sends nothing, it only picks the route.
    const Descriptor probe(::socket(address.family(), SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (probe.get() < 0) continue;
    if (::connect(probe.get(), address.get(), address.length) != 0) continue;
    Address local;
    local.length = sizeof local.storage;
    ::getsockname(probe.get(), reinterpret_cast<sockaddr*>(&local.storage), &local.length);
    return numeric(local);
  }
  throw Error(
      ExitCode::peer_lost,
      fmt::format("there is no route to {}; give the address by which the other ranks reach "
                  "this one",
                  host));
}

Descriptor listen_anywhere(int family, int port) {
  Descriptor socket(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (socket.get() < 0) return {};
  // The port of a job that has just ended may be used again.
  if (port != 0) set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);
  Address any;
  any.storage.ss_family = static_cast<sa_family_t>(family);
  any.length = family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  // Both families have the port in the same place.
  reinterpret_cast<sockaddr_in*>(&any.storage)->sin_port = htons(static_cast<std::uint16_t>(port));
  if (::bind(socket.get(), any.get(), any.length) != 0) return {};
  if (::listen(socket.get(), SOMAXCONN) != 0) return {};
  return socket;
}

int local_port(const Descriptor& socket) {
  Address local;
  local.length = sizeof local.storage;
  ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&local.storage), &local.length);
  return ntohs(local.family() == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6*>(&local.storage)->sin6_port
                   : reinterpret_cast<const sockaddr_in*>(&local.storage)->sin_port);
}

Descriptor accept_one(const Descriptor& listener) {
  return Descriptor(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
}

Descriptor connect_to(const std::string& host, int port, Deadline deadline) {
  std::string reason;
  for (const Address& address : resolve(host, port)) {
    try {
      return connect_to(address, deadline);
    } catch (const PeerLost& error) {
      reason = error.what();
    }
  }
  throw PeerLost(reason);
}

void tune(const Descriptor& connection, std::chrono::milliseconds patience) {
  set_option(connection, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(connection, SOL_SOCKET, SO_KEEPALIVE, 1);
  const auto seconds =
      static_cast<int>(std::clamp<std::int64_t>(patience.count() / 1000, 4, 30000));
  set_option(connection, IPPROTO_TCP, TCP_KEEPIDLE, seconds);
  set_option(connection, IPPROTO_TCP, TCP_KEEPINTVL, seconds / 4);
  set_option(connection, IPPROTO_TCP, TCP_KEEPCNT, 4);
}

int poll_timeout(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 3600 * 1000));
}

void send_all(const Descriptor& socket, const void* from, std::size_t bytes, Deadline deadline) {
  const char* next = static_cast<const char*>(from);
  while (bytes > 0) {
    await(socket, POLLOUT, deadline);
    const ssize_t sent = ::send(socket.get(), next, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (sent < 0) throw PeerLost(error_text(errno));
    next += sent;
    bytes -= static_cast<std::size_t>(sent);
  }
}

void receive_all(const Descriptor& socket, void* to, std::size_t bytes, Deadline deadline) {
  char* next = static_cast<char*>(to);
  while (bytes > 0) {
    await(socket, POLLIN, deadline);
    const ssize_t got = ::recv(socket.get(), next, bytes, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got < 0) throw PeerLost(error_text(errno));
    if (got == 0) throw PeerLost("it closed the connection");
    next += got;
    bytes -= static_cast<std::size_t>(got);
  }
}

}  // namespace thinwire::sockets
