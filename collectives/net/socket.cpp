#include "collectives/net/socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <system_error>

#include "collectives/base/error.h"

namespace thinwire::net {
namespace {

void set_option(const Descriptor& socket, int level, int name, int value) {
  // A kernel that lacks one of these still moves bytes.
  ::setsockopt(socket.get(), level, name, &value, sizeof value);
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

Address address_of(const sockaddr* from) {
  Address address;
  address.length = from->sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  std::copy_n(reinterpret_cast<const char*>(from), address.length,
              reinterpret_cast<char*>(&address.storage));
  return address;
}

Descriptor listen_at(const Address& address) {
  Descriptor socket(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.open()) return {};
  // The port of a job that has just ended may be used again.
  if (address.port() != 0) set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);
  if (address.family() == AF_INET6) set_option(socket, IPPROTO_IPV6, IPV6_V6ONLY, 0);
  if (::bind(socket.get(), address.get(), address.length) != 0) return {};
  if (::listen(socket.get(), SOMAXCONN) != 0) return {};
  return socket;
}

}  // namespace

std::string error_text(int code) {
  return std::generic_category().message(code);
}

bool again(int code) {
  return code == EAGAIN || code == EWOULDBLOCK || code == EINTR;
}

int Address::port() const {
  // Both families have the port in the same place.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
}

std::string numeric(const Address& address) {
  std::array<char, NI_MAXHOST> text{};
  if (::getnameinfo(address.get(), address.length, text.data(), text.size(), nullptr, 0,
                    NI_NUMERICHOST) != 0) {
    return "?";
  }
  return text.data();
}

bool is_loopback(const std::string& address) {
  return address.starts_with("127.") || address == "::1";
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

std::vector<std::string> own_addresses() {
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) < 0) {
    throw IoError(fmt::format("cannot list the addresses of this machine: {}; check its network",
                              error_text(errno)));
  }
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(list, &::freeifaddrs);
  std::vector<std::string> addresses;
  std::vector<std::string> loopback;
  for (const int family : {AF_INET, AF_INET6}) {
    for (const ifaddrs* entry = list; entry; entry = entry->ifa_next) {
      if (!entry->ifa_addr || entry->ifa_addr->sa_family != family) continue;
      if ((entry->ifa_flags & IFF_UP) == 0) continue;
      const auto* v6 = reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr);
      if (family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr)) continue;
      const std::string text = numeric(address_of(entry->ifa_addr));
      (is_loopback(text) ? loopback : addresses).push_back(text);
    }
  }
  addresses.insert(addresses.end(), loopback.begin(), loopback.end());
  return addresses;
}

Descriptor listen_on(const std::string& address, int port) {
  return listen_at(resolve(address, port).front());
}

Descriptor listen_everywhere(int port) {
  Address any;
  any.length = sizeof(sockaddr_in6);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&any.storage);
  v6->sin6_family = AF_INET6;
  v6->sin6_port = htons(static_cast<std::uint16_t>(port));
  Descriptor both = listen_at(any);
  if (both.open() || errno == EADDRINUSE) return both;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&any.storage);
  any = {};
  any.length = sizeof(sockaddr_in);
  v4->sin_family = AF_INET;
  v4->sin_port = htons(static_cast<std::uint16_t>(port));
  return listen_at(any);
}

ListenPlace listen_place(const std::string& host) {
  const std::vector<std::string> own = own_addresses();
  std::vector<std::string> here;
  for (const Address& address : resolve(host, 0)) {
    const std::string text = numeric(address);
    // Any address of 127.0.0.0/8 is this machine's, though no interface lists it.
    const bool ours = is_loopback(text) || std::find(own.begin(), own.end(), text) != own.end();
    const bool known = std::find(here.begin(), here.end(), text) != here.end();
    if (ours && !known) here.push_back(text);
    if (text == host) return {ours ? text : ""};
  }
  if (host == "localhost" && !here.empty()) {
    const bool v4 = std::find(here.begin(), here.end(), "127.0.0.1") != here.end();
    return {v4 ? "127.0.0.1" : here.front()};
  }
  // Of several addresses others may reach only one, which this machine cannot know; nor what a name
  // that means loopback here means elsewhere.
  if (here.size() != 1 || is_loopback(here.front())) return {};
  return {here.front()};
}

int local_port(const Descriptor& socket) {
  Address local;
  local.length = sizeof local.storage;
  ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&local.storage), &local.length);
  return local.port();
}

Descriptor accept_one(const Descriptor& listener) {
  return Descriptor(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
}

Descriptor begin_connect(const Address& address) {
  Descriptor socket(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.open()) return {};
  if (::connect(socket.get(), address.get(), address.length) != 0 && errno != EINPROGRESS) {
    return {};
  }
  return socket;
}

int connect_error(const Descriptor& socket) {
  int code = 0;
  socklen_t size = sizeof code;
  ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &code, &size);
  return code;
}

Descriptor connect_to(const std::string& host, int port, Deadline deadline) {
  std::string reason = "no answer in time";
  std::vector<Descriptor> sockets;
  for (const Address& address : resolve(host, port)) {
    sockets.push_back(begin_connect(address));
    if (!sockets.back().open()) reason = error_text(errno);
  }
  const auto is_open = [](const Descriptor& socket) { return socket.open(); };
  while (std::any_of(sockets.begin(), sockets.end(), is_open) && Clock::now() < deadline) {
    std::vector<pollfd> polled;
    for (const Descriptor& socket : sockets) polled.push_back({socket.get(), POLLOUT, 0});
    ::poll(polled.data(), polled.size(), poll_timeout(deadline));
    for (std::size_t i = 0; i < sockets.size(); ++i) {
      if (polled[i].revents == 0 || !sockets[i].open()) continue;
      const int code = connect_error(sockets[i]);
      if (code == 0) return std::move(sockets[i]);
      reason = error_text(code);
      sockets[i].reset();
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

}  // namespace thinwire::net
