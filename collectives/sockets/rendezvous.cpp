#include "collectives/sockets/rendezvous.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <thread>
#include <tuple>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "collectives/net/call.h"
#include "collectives/net/door.h"

namespace thinwire::sockets {
namespace {

using namespace std::chrono_literals;
using net::Address;
using net::Door;
using net::Introduction;
using net::Role;

// A rank that is asked to stop while others are missing gives them this long to come, so that all
// can stop together after a step.
constexpr auto kGrace = 2s;
// How often a wait looks at what does not wake poll().
constexpr int kLookMilliseconds = 100;
constexpr auto kBeforeAskingAgain = 3s;
// What a rank says at the meeting after its contact, if it was asked to stop.
constexpr char kAskedToStop = 's';

struct ContactBytes {
  std::uint16_t port = 0;
  std::array<char, kContactBytes - 2> address{};  // ends with zeros
};
static_assert(sizeof(ContactBytes) == kContactBytes);

Descriptor& channel_of(Connections& connections, Role role) {
  return role == Role::data ? connections.data : connections.notices;
}

// The exception with which all ranks end when rank 0 refuses to wait any longer.
[[noreturn]] void end_meeting(MeetingHeader::Kind kind, const std::string& text) {
  if (kind == MeetingHeader::Kind::gave_up) throw PeerLost(text);
  throw Error(ExitCode::stopped_with_checkpoint, text);
}

constexpr const char* kStopped =
    "stopped on request before the ranks had met; there is no checkpoint yet";

// Watches for the request to stop while this rank waits for others.
class Patience {
 public:
  explicit Patience(const SocketOptions& options) : options_(options) {}

  // Whether this rank was asked to stop and the others have had their time to come.
  bool is_over() {
    if (!options_.stop_requested || !options_.stop_requested()) return false;
    if (since_ == Clock::time_point{}) since_ = Clock::now();
    return Clock::now() - since_ > kGrace;
  }
  void check() {
    if (is_over()) throw Error(ExitCode::stopped_with_checkpoint, kStopped);
  }

 private:
  const SocketOptions& options_;
  Clock::time_point since_{};
};

// "1, 2, 5", and no more than twenty of them.
std::string few(const std::vector<int>& ranks) {
  constexpr std::ptrdiff_t kMost = 20;
  if (std::ssize(ranks) <= kMost) return fmt::format("{}", fmt::join(ranks, ", "));
  return fmt::format("{} and {} more", fmt::join(ranks.begin(), ranks.begin() + kMost, ", "),
                     std::ssize(ranks) - kMost);
}

// The addresses of a host, which may get its name only when it starts. Throws `Error` where it has
// none until the deadline.
std::vector<Address> resolve_in_time(const std::string& host, int port, Deadline deadline,
                                     Patience& patience) {
  for (;;) {
    try {
      return net::resolve(host, port);
    } catch (const Error&) {
      if (Clock::now() >= deadline) throw;
    }
    patience.check();
    std::this_thread::sleep_for(250ms);
  }
}

// What this rank's connections still lack, and who brings it.
class Gathering {
 public:
  Gathering(const SocketOptions& options, Door& door, Patience& patience, Deadline deadline)
      : options_(options),
        door_(door),
        patience_(patience),
        deadline_(deadline),
        connections_(static_cast<std::size_t>(options.size)) {}

  // The ranks above this one of which a connection is missing.
  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (int rank = options_.rank + 1; rank < options_.size; ++rank) {
      const Connections& peer = connections_[static_cast<std::size_t>(rank)];
      if (!peer.data.open() || !peer.notices.open()) ranks.push_back(rank);
    }
    return ranks;
  }
  bool expects(const Introduction& who) {
    return who.role != Role::lifeline && who.role != Role::meeting && who.guest > options_.rank &&
           !place(who).open();
  }
  void take(const Introduction& who, Descriptor socket) {
    net::tune(socket, options_.timeout);
    place(who) = std::move(socket);
  }
  void call_those_below(const std::vector<Contact>& contacts) {
    for (int peer = 0; peer < options_.rank; ++peer) {
      for (const Role role : {Role::data, Role::notices}) {
        call(peer, role, contacts[static_cast<std::size_t>(peer)]);
      }
    }
  }
  void receive_those_above() {
    while (!missing().empty()) {
      std::vector<pollfd> polled;
      door_.add_to(polled);
      ::poll(polled.data(), polled.size(),
             std::min(net::poll_timeout(deadline_), kLookMilliseconds));
      admit();
      patience_.check();
      if (missing().empty() || Clock::now() < deadline_) continue;
      throw PeerLost(fmt::format(
          "rank {} came to the meeting but did not connect to rank {}{}; see the output of that "
          "rank",
          few(missing()), options_.rank, door_.turned_away()));
    }
  }
  std::vector<Connections> result() { return std::move(connections_); }

 private:
  Descriptor& place(const Introduction& who) {
    return channel_of(connections_[static_cast<std::size_t>(who.guest)], who.role);
  }
  void admit() {
    door_.admit([&](const Introduction& who) { return expects(who); },
                [&](const Introduction& who, Descriptor socket) { take(who, std::move(socket)); });
  }
  // The ranks above this one are let in meanwhile.
  void call(int peer, Role role, const Contact& contact) {
    const Introduction who{role, options_.rank, peer};
    try {
      Descriptor socket = net::call(net::resolve(contact.address, contact.port), options_.identity,
                                    who, deadline_, [&] {
                                      patience_.check();
                                      admit();
                                    });
      net::tune(socket, options_.timeout);
      channel_of(connections_[static_cast<std::size_t>(peer)], role) = std::move(socket);
    } catch (const PeerLost& error) {
      throw PeerLost(fmt::format(
          "rank {} cannot reach rank {} at {} port {}: {}; see whether rank {} still runs, and "
          "give it an address that its peers can reach",
          options_.rank, peer, contact.address, contact.port, error.what(), peer));
    }
  }

  const SocketOptions& options_;
  Door& door_;
  Patience& patience_;
  const Deadline deadline_;
  std::vector<Connections> connections_;
};

// Rank 0: collects where all others listen, then tells them.
class MeetingHost {
 public:
  MeetingHost(const SocketOptions& options, Door& door, Deadline deadline)
      : options_(options), door_(door), deadline_(deadline) {}

  // Contacts by rank; this rank's own comes first.
  void run(const Contact& own, Patience& patience) {
    contacts_[0] = own;
    while (static_cast<int>(contacts_.size()) < options_.size) {
      wait();
      if (static_cast<int>(contacts_.size()) == options_.size) break;
      if (Clock::now() >= deadline_) {
        end(MeetingHeader::Kind::gave_up,
            fmt::format("rank {} did not come within {} s{}; see whether all {} ranks were started "
                        "and reach rank 0",
                        few(missing()), static_cast<double>(options_.timeout.count()) / 1000,
                        door_.turned_away(), options_.size));
      }
      if (patience.is_over()) asked_to_stop_ = 0;
      if (asked_to_stop_) {
        end(MeetingHeader::Kind::stopped,
            fmt::format("rank {} was asked to stop while rank {} was missing; there is no "
                        "checkpoint yet",
                        *asked_to_stop_, few(missing())));
      }
    }
    std::string all;
    for (const auto& [rank, contact] : contacts_) all += write_contact(contact);
    tell(MeetingHeader::Kind::contacts, all);
  }

 private:
  struct Guest {
    Descriptor socket;
    std::string said;
  };

  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (int rank = 1; rank < options_.size; ++rank) {
      if (!contacts_.contains(rank)) ranks.push_back(rank);
    }
    return ranks;
  }

  void wait() {
    std::vector<pollfd> polled;
    door_.add_to(polled);
    for (const auto& [rank, guest] : guests_) polled.push_back({guest.socket.get(), POLLIN, 0});
    ::poll(polled.data(), polled.size(), std::min(net::poll_timeout(deadline_), kLookMilliseconds));
    const auto expected = [&](const Introduction& who) {
      return who.role == Role::meeting && !guests_.contains(who.guest);
    };
    for (auto& guest : guests_) listen_to(guest.first, guest.second);
    // A rank that left may come again.
    std::erase_if(guests_, [](const auto& guest) { return !guest.second.socket.open(); });
    door_.admit(expected, [&](const Introduction& who, Descriptor socket) {
      net::tune(socket, options_.timeout);
      guests_[who.guest].socket = std::move(socket);
    });
  }

  // A rank says its contact first. After that it can only say that it was asked to stop.
  void listen_to(int rank, Guest& guest) {
    std::array<char, kContactBytes> buffer;
    const bool has_contact = guest.said.size() == kContactBytes;
    const std::size_t wanted = has_contact ? 1 : kContactBytes - guest.said.size();
    const ssize_t got = ::recv(guest.socket.get(), buffer.data(), wanted, MSG_DONTWAIT);
    if (got < 0 && net::again(errno)) return;
    if (got > 0 && has_contact && buffer[0] == kAskedToStop) {
      asked_to_stop_ = rank;
      return;
    }
    if (got > 0 && !has_contact) {
      guest.said.append(buffer.data(), static_cast<std::size_t>(got));
      if (guest.said.size() < kContactBytes) return;
      if (const auto contact = parse_contact(guest.said)) {
        contacts_[rank] = *contact;
        return;
      }
    }
    // The guest left, or says what no rank says.
    contacts_.erase(rank);
    guest.socket.reset();
  }

  void tell(MeetingHeader::Kind kind, const std::string& text) {
    const MeetingHeader header{kind, static_cast<std::uint32_t>(text.size())};
    std::string message(reinterpret_cast<const char*>(&header), sizeof header);
    message += text;
    for (const auto& [rank, guest] : guests_) {
      try {
        net::send_all(guest.socket, message.data(), message.size(),
                      std::max(deadline_, Clock::now() + 1s));
      } catch (const PeerLost&) {
        // It is missed when it does not connect.
      }
    }
  }

  [[noreturn]] void end(MeetingHeader::Kind kind, const std::string& text) {
    tell(kind, text.substr(0, kMeetingText));
    end_meeting(kind, text);
  }

  const SocketOptions& options_;
  Door& door_;
  const Deadline deadline_;
  std::map<int, Guest> guests_;
  std::map<int, Contact> contacts_;
  std::optional<int> asked_to_stop_;  // a rank
};

// Where rank 0 says that it is. Nothing if it has not said so yet.
std::optional<Contact> find_rank_zero(const SocketOptions& options, Directory* directory) {
  if (directory == nullptr) return Contact{options.meet_host, options.meet_port};
  auto contact = directory->look_up();
  if (contact && net::is_loopback(contact->address)) {
    // Who reaches the meeting place over loopback is on its machine, whose own name may stand for
    // loopback there: others find rank 0 where they find that place.
    const bool elsewhere =
        !net::is_loopback(net::local_address_towards(options.meet_host, options.meet_port));
    if (elsewhere) contact->address = options.meet_host;
  }
  return contact;
}

// A connection to rank 0, and where that is.
std::pair<Descriptor, Contact> call_rank_zero(const SocketOptions& options, Directory* directory,
                                              Deadline deadline, Patience& patience) {
  for (auto pause = 1ms;; pause = std::min(2 * pause, 100ms)) {
    patience.check();
    const auto contact = find_rank_zero(options, directory);
    if (!contact && Clock::now() >= deadline) {
      throw PeerLost(fmt::format(
          "rank 0 has not left word within {} s of where it is; see whether all {} ranks were "
          "started and reach {}:{}",
          static_cast<double>(options.timeout.count()) / 1000, options.size, options.meet_host,
          options.meet_port));
    }
    if (!contact) {
      std::this_thread::sleep_for(pause);
      continue;
    }
    // A directory may still hold the place of an earlier start of the job, so it is asked again.
    const Deadline until =
        directory == nullptr ? deadline : std::min(deadline, Clock::now() + kBeforeAskingAgain);
    try {
      const auto addresses = resolve_in_time(contact->address, contact->port, deadline, patience);
      return {net::call(addresses, options.identity, {Role::meeting, options.rank, 0}, until,
                        [&] { patience.check(); }),
              *contact};
    } catch (const PeerLost& error) {
      if (directory != nullptr && Clock::now() < deadline) continue;
      throw PeerLost(fmt::format(
          "rank {} cannot meet rank 0 at {} port {}: {}; see whether rank 0 runs there and the "
          "address is right",
          options.rank, contact->address, contact->port, error.what()));
    }
  }
}

// Rank 0's answer, once all have come: its kind and its text.
std::pair<MeetingHeader::Kind, std::string> hear_rank_zero(const Descriptor& meeting,
                                                           const SocketOptions& options,
                                                           Deadline deadline, Patience& patience) {
  bool has_asked = false;
  pollfd polled{meeting.get(), POLLIN, 0};
  while (Clock::now() < deadline && ::poll(&polled, 1, kLookMilliseconds) <= 0) {
    if (has_asked || !patience.is_over()) continue;
    // Rank 0 tells the others, and this one too.
    has_asked = true;
    net::send_all(meeting, &kAskedToStop, 1, deadline);
    deadline = std::min(deadline, Clock::now() + kGrace);
  }
  if (has_asked && Clock::now() >= deadline) {
    throw Error(ExitCode::stopped_with_checkpoint, kStopped);
  }
  MeetingHeader header;
  net::receive_all(meeting, &header, sizeof header, deadline);
  if (!plausible(header, options.size)) throw PeerLost("it says what no rank says");
  std::string text(header.bytes, '\0');
  net::receive_all(meeting, text.data(), text.size(), deadline);
  return {header.kind, std::move(text)};
}

// Another rank: says where it listens, and hears where the others do.
std::vector<Contact> attend(const SocketOptions& options, Directory* directory, const Contact& own,
                            Deadline deadline, Patience& patience) {
  const auto [meeting, rank_zero] = call_rank_zero(options, directory, deadline, patience);
  net::tune(meeting, options.timeout);
  // Rank 0 may have begun later than this one, and knows better who is missing.
  const Deadline end = Clock::now() + options.timeout + 1s;
  MeetingHeader::Kind kind;
  std::string text;
  try {
    const std::string contact = write_contact(own);
    net::send_all(meeting, contact.data(), contact.size(), end);
    std::tie(kind, text) = hear_rank_zero(meeting, options, end, patience);
  } catch (const PeerLost& error) {
    throw PeerLost(fmt::format("rank 0 ended the meeting: {}; look there for why", error.what()));
  }
  if (kind != MeetingHeader::Kind::contacts) end_meeting(kind, printable(text, kMeetingText));
  std::vector<Contact> contacts;
  const bool here = net::is_loopback(own.address);
  for (int rank = 0; rank < options.size; ++rank) {
    auto peer = parse_contact(std::string_view(text).substr(
        static_cast<std::size_t>(rank) * kContactBytes, kContactBytes));
    if (!peer) {
      throw PeerLost(
          fmt::format("what rank 0 says of rank {} is no address; see its output", rank));
    }
    // A rank on rank 0's machine may know only loopback: others find it where they find rank 0.
    if (!here && net::is_loopback(peer->address)) peer->address = rank_zero.address;
    contacts.push_back(std::move(*peer));
  }
  return contacts;
}

// Opens this rank's door; its contact goes to `own`.
Descriptor listen(const SocketOptions& options, Contact& own) {
  const bool at_the_meeting_place = options.rank == 0 && options.meeting == Meeting::at_rank_zero;
  const net::ListenPlace place{listen_address(options)};
  own.address = !options.address.empty() ? options.address
                : !place.address.empty()
                    ? place.address
                    : net::local_address_towards(options.meet_host, options.meet_port);
  const int port = at_the_meeting_place ? options.meet_port : 0;
  Descriptor listener = place.listen(port);
  if (!listener.open()) {
    const int code = errno;
    throw Error(ExitCode::peer_lost,
                at_the_meeting_place
                    ? fmt::format("rank 0 cannot listen at port {} of this machine: {}; choose "
                                  "another port",
                                  port, net::error_text(code))
                    : fmt::format("this rank cannot listen for its peers: {}; see what limits the "
                                  "sockets of this machine",
                                  net::error_text(code)));
  }
  own.port = net::local_port(listener);
  return listener;
}

}  // namespace

std::string write_contact(const Contact& contact) {
  ContactBytes bytes;
  check(contact.address.size() < bytes.address.size(), "an address has at most 125 characters");
  bytes.port = static_cast<std::uint16_t>(contact.port);
  std::copy(contact.address.begin(), contact.address.end(), bytes.address.begin());
  return std::string(reinterpret_cast<const char*>(&bytes), sizeof bytes);
}

std::optional<Contact> parse_contact(std::string_view bytes) {
  if (bytes.size() != kContactBytes) return std::nullopt;
  ContactBytes contact;
  std::memcpy(&contact, bytes.data(), bytes.size());
  const auto end = std::find(contact.address.begin(), contact.address.end(), '\0');
  if (contact.port == 0 || end == contact.address.begin() || end == contact.address.end()) {
    return std::nullopt;
  }
  const bool plain = std::all_of(contact.address.begin(), end, [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           std::string_view(".:-_%").find(c) != std::string_view::npos;
  });
  const bool zeros = std::all_of(end, contact.address.end(), [](char c) { return c == '\0'; });
  if (!plain || !zeros) return std::nullopt;
  return Contact{std::string(contact.address.begin(), end), contact.port};
}

bool plausible(const MeetingHeader& header, int size) {
  switch (header.kind) {
    case MeetingHeader::Kind::contacts:
      return header.bytes == static_cast<std::size_t>(size) * kContactBytes;
    case MeetingHeader::Kind::gave_up:
    case MeetingHeader::Kind::stopped:
      return header.bytes <= kMeetingText;
  }
  return false;
}

std::string listen_address(const SocketOptions& options) {
  if (!options.address.empty()) return net::listen_place(options.address).address;
  const net::ListenPlace place = net::listen_place(options.meet_host);
  if (options.rank == 0 && options.meeting == Meeting::at_rank_zero) return place.address;
  // Loopback only where the meeting place is loopback to all ranks.
  const std::string route = net::local_address_towards(options.meet_host, options.meet_port);
  return net::is_loopback(route) ? place.address : route;
}

std::vector<Connections> meet(const SocketOptions& options, Directory* directory,
                              Deadline deadline) {
  Patience patience(options);
  resolve_in_time(options.meet_host, 0, deadline, patience);
  Contact own;
  Descriptor listener = listen(options, own);
  Door door(std::move(listener), options.identity, options.rank);
  std::vector<Contact> contacts;
  if (options.rank == 0) {
    if (directory != nullptr) directory->publish(own);
    MeetingHost(options, door, deadline).run(own, patience);
  } else {
    contacts = attend(options, directory, own, deadline, patience);
  }
  Gathering gathering(options, door, patience, Clock::now() + options.timeout);
  gathering.call_those_below(contacts);
  gathering.receive_those_above();
  return gathering.result();
}

}  // namespace thinwire::sockets
