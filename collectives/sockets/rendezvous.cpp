#include "collectives/sockets/rendezvous.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <random>
#include <sstream>
#include <thread>

#include "runtime/base/error.h"

namespace thinwire::sockets {
namespace {

using namespace std::chrono_literals;

// Also tells ranks of another byte order or version from ours.
constexpr std::uint64_t kMagic = 0x7468696e77697231;  // "thinwir1"

enum class Channel : std::uint32_t { data, notices };

// Where a rank listens; in the directory "address port token".
struct Contact {
  std::string address;
  int port = 0;
  std::uint64_t token = 0;  // what a caller must say
};

// What the connecting side says first.
struct Hello {
  std::uint64_t magic = kMagic;
  std::uint64_t token = 0;
  std::uint32_t rank = 0;
  Channel channel = Channel::data;
};

// What the accepting side answers.
struct Welcome {
  std::uint64_t magic = kMagic;
  std::uint32_t rank = 0;
  std::uint32_t unused = 0;
};

// Somebody who connected and has not said yet who he is.
struct Guest {
  Descriptor socket;
  std::array<char, sizeof(Hello)> said{};
  std::size_t bytes = 0;
};

std::uint64_t random_token() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

Descriptor& channel_of(Connections& connections, Channel channel) {
  return channel == Channel::data ? connections.data : connections.notices;
}

// Every rank's contact, once all have published theirs.
std::vector<Contact> everybody(const SocketOptions& options, Directory& directory,
                               Deadline deadline) {
  std::vector<Contact> contacts(static_cast<std::size_t>(options.size));
  std::vector<int> missing(static_cast<std::size_t>(options.size));
  std::iota(missing.begin(), missing.end(), 0);
  const auto came = [&](int rank) {
    const auto text = directory.look_up(rank);
    if (!text) return false;
    Contact& contact = contacts[static_cast<std::size_t>(rank)];
    std::istringstream words(*text);
    if (words >> contact.address >> contact.port >> contact.token) return true;
    throw PeerLost(
        fmt::format("what the store holds for rank {} is no address; use another prefix", rank));
  };
  for (auto pause = 1ms;; pause = std::min(2 * pause, 100ms)) {
    std::erase_if(missing, came);
    if (missing.empty()) return contacts;
    if (Clock::now() >= deadline) {
      throw PeerLost(
          fmt::format("rank {} did not come within {} s; see whether all {} ranks were started and "
                      "reach the store at {}:{}",
                      fmt::join(missing, ", "), static_cast<double>(options.timeout.count()) / 1000,
                      options.size, options.store_host, options.store_port));
    }
    std::this_thread::sleep_for(pause);
  }
}

bool is_loopback(const std::string& address) {
  return address.starts_with("127.") || address == "::1";
}

Descriptor introduce(const Contact& contact, int peer, const Hello& hello,
                     std::chrono::milliseconds patience, Deadline deadline) {
  try {
    Descriptor socket = connect_to(contact.address, contact.port, deadline);
    tune(socket, patience);
    send_all(socket, &hello, sizeof hello, deadline);
    Welcome welcome;
    receive_all(socket, &welcome, sizeof welcome, deadline);
    if (welcome.magic != kMagic || welcome.rank != static_cast<std::uint32_t>(peer)) {
      throw PeerLost("somebody else answers there");
    }
    return socket;
  } catch (const PeerLost& error) {
    throw PeerLost(
        fmt::format("rank {} cannot reach rank {} at {} port {}: {}; see whether rank {} still "
                    "runs, and give it "
                    "an address that its peers can reach",
                    hello.rank, peer, contact.address, contact.port, error.what(), peer));
  }
}

// Waits for both connections of every rank above this one.
void receive_guests(const Descriptor& listener, std::uint64_t token, const SocketOptions& options,
                    Deadline deadline, std::vector<Connections>& connections) {
  std::vector<Guest> guests;
  const auto missing = [&] {
    std::vector<int> ranks;
    for (int rank = options.rank + 1; rank < options.size; ++rank) {
      const Connections& peer = connections[static_cast<std::size_t>(rank)];
      if (peer.data.get() < 0 || peer.notices.get() < 0) ranks.push_back(rank);
    }
    return ranks;
  };
  // Nobody is let in who is not expected, does not know the token, or is here already.
  const auto let_in = [&](Guest& guest) {
    Hello hello;
    std::memcpy(&hello, guest.said.data(), sizeof hello);
    if (hello.magic != kMagic || hello.token != token) return;
    if (hello.rank <= static_cast<std::uint32_t>(options.rank)) return;
    if (hello.rank >= static_cast<std::uint32_t>(options.size)) return;
    if (hello.channel != Channel::data && hello.channel != Channel::notices) return;
    Descriptor& place = channel_of(connections[hello.rank], hello.channel);
    if (place.get() >= 0) return;
    const Welcome welcome{kMagic, static_cast<std::uint32_t>(options.rank), 0};
    tune(guest.socket, options.timeout);
    const ssize_t sent = ::send(guest.socket.get(), &welcome, sizeof welcome, MSG_NOSIGNAL);
    if (sent == sizeof welcome) place = std::move(guest.socket);
  };

  while (!missing().empty()) {
    std::vector<pollfd> entries{{listener.get(), POLLIN, 0}};
    for (const Guest& guest : guests) entries.push_back({guest.socket.get(), POLLIN, 0});
    ::poll(entries.data(), entries.size(), poll_timeout(deadline));
    if (Clock::now() >= deadline) {
      throw PeerLost(
          fmt::format("rank {} published its address but did not connect to rank {}; see "
                      "the output of that rank",
                      fmt::join(missing(), ", "), options.rank));
    }
    for (Guest& guest : guests) {
      const ssize_t got = ::recv(guest.socket.get(), guest.said.data() + guest.bytes,
                                 guest.said.size() - guest.bytes, MSG_DONTWAIT);
      if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
      if (got > 0) guest.bytes += static_cast<std::size_t>(got);
      if (got > 0 && guest.bytes < guest.said.size()) continue;
      if (got > 0) let_in(guest);
      guest.socket.reset();
    }
    std::erase_if(guests, [](const Guest& guest) { return guest.socket.get() < 0; });
    for (Descriptor next = accept_one(listener); next.get() >= 0; next = accept_one(listener)) {
      guests.push_back({std::move(next), {}, 0});
    }
  }
}

}  // namespace

std::vector<Connections> meet(const SocketOptions& options, Directory& directory,
                              Deadline deadline) {
  std::vector<Connections> connections(static_cast<std::size_t>(options.size));
  Contact self;
  self.address = options.address.empty()
                     ? local_address_towards(options.store_host, options.store_port)
                     : options.address;
  self.token = random_token();
  const Descriptor listener = listen_anywhere(resolve(self.address, 1).front().family(), 0);
  if (listener.get() < 0) {
    throw Error(
        ExitCode::peer_lost,
        fmt::format("this rank cannot listen for its peers: {}; see what limits the sockets "
                    "of this machine",
                    error_text(errno)));
  }
  self.port = local_port(listener);
  directory.publish(options.rank, fmt::format("{} {} {}", self.address, self.port, self.token));
  std::vector<Contact> contacts = everybody(options, directory, deadline);
  // Who reaches the store over loopback is on the store's machine, whose own name may stand for
  // loopback there: others find it where they find the store.
  if (!is_loopback(self.address)) {
    for (Contact& contact : contacts) {
      if (is_loopback(contact.address)) contact.address = options.store_host;
    }
  }
  for (int peer = 0; peer < options.rank; ++peer) {
    const Contact& contact = contacts[static_cast<std::size_t>(peer)];
    for (const Channel channel : {Channel::data, Channel::notices}) {
      const Hello hello{kMagic, contact.token, static_cast<std::uint32_t>(options.rank), channel};
      channel_of(connections[static_cast<std::size_t>(peer)], channel) =
          introduce(contact, peer, hello, options.timeout, deadline);
    }
  }
  receive_guests(listener, self.token, options, deadline, connections);
  return connections;
}

}  // namespace thinwire::sockets
