// The few things that are asked of the kernel's TCP, with errors as exceptions.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "collectives/base/file_descriptor.h"
#include "collectives/communicator.h"

namespace thinwire::net {

using Descriptor = FileDescriptor;

// Where a socket is or goes to, in the kernel's words.
struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
  int port() const;
};

// "Connection refused" for an errno.
std::string error_text(int code);
// Would the call succeed later?
bool again(int code);

// What `host`, a name or a numeric address, stands for. Throws `Error` where it stands for nothing.
std::vector<Address> resolve(const std::string& host, int port);
// "10.0.0.1" or "fd00::1".
std::string numeric(const Address& address);
bool is_loopback(const std::string& address);

// The numeric address from which this machine reaches `host`. Throws `Error` without a route.
std::string local_address_towards(const std::string& host, int port);
// The numeric addresses of this machine's interfaces that are up, IPv4 before IPv6, loopback last;
// without those of IPv6 that mean something on one link only.
std::vector<std::string> own_addresses();

// A listening socket at a numeric address of this machine; port 0 lets the kernel choose. Empty,
// with errno, where the kernel refuses.
Descriptor listen_on(const std::string& address, int port);
// The same on every interface, for IPv4 and IPv6 alike where the kernel has both.
Descriptor listen_everywhere(int port);

// Where a rank listens that others reach by the name or address `host`: at that address, where it
// is one of this machine's, else on every interface. Every interface, too, for a name that has
// several addresses here, or that means loopback here (as Debian gives a machine its own name) and
// may mean another address elsewhere; but localhost is loopback.
struct ListenPlace {
  std::string address;  // empty: every interface
  Descriptor listen(int port) const {
    return address.empty() ? listen_everywhere(port) : listen_on(address, port);
  }
};
ListenPlace listen_place(const std::string& host);

int local_port(const Descriptor& socket);

// The next connection of a listener, or an empty descriptor when there is none yet.
Descriptor accept_one(const Descriptor& listener);

// A connection being made: writable once it is, or has failed (`connect_error`). Empty, with errno,
// where it fails at once.
Descriptor begin_connect(const Address& address);
// 0, or the errno for which no connection came about.
int connect_error(const Descriptor& socket);

// A connection to `host`:`port`. Throws `PeerLost` with the system's reason where there is none
// until the deadline.
Descriptor connect_to(const std::string& host, int port, Deadline deadline);

// Small messages go at once, and a machine that vanished is noticed, but not before an operation
// has had `patience` to say so better. The sizes of the buffers are left to the kernel, which fits
// them to the link; a size set by hand would end that.
void tune(const Descriptor& connection, std::chrono::milliseconds patience);

// Milliseconds for poll(): rounded up, so that a deadline has passed when poll() returns.
int poll_timeout(Deadline deadline);

// All or an exception: `PeerLost` when the deadline passes or the connection ends first.
void send_all(const Descriptor& socket, const void* from, std::size_t bytes, Deadline deadline);
void receive_all(const Descriptor& socket, void* to, std::size_t bytes, Deadline deadline);

}  // namespace thinwire::net
