#include "collectives/net/door.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace thinwire::net {
namespace {

constexpr std::size_t kMostStrangers = 64;
// Taken from the listener before guests are heard, so that a flood leaves them time.
constexpr int kNewcomersAtOnce = 16;
constexpr std::chrono::seconds kLongestHandshake{10};

}  // namespace

Door::Guest::Guest(Descriptor connection, const JobIdentity& identity, int rank)
    : socket(std::move(connection)), side(identity, rank), came(Clock::now()) {}

Door::Door(Descriptor listener, const JobIdentity& identity, int rank)
    : listener_(std::move(listener)), identity_(identity), rank_(rank) {}

void Door::close() {
  listener_.reset();
  guests_.clear();
}

void Door::add_to(std::vector<pollfd>& polled) const {
  if (!open()) return;
  if (!rests_) polled.push_back({listener_.get(), POLLIN, 0});
  for (const Guest& guest : guests_) polled.push_back({guest.socket.get(), POLLIN, 0});
}

void Door::admit(const Expected& expected, const Take& take) {
  if (!open()) return;
  for (Guest& guest : guests_) {
    serve(guest, expected, take);
    if (Clock::now() - guest.came > kLongestHandshake) guest.socket.reset();
  }
  std::erase_if(guests_, [](const Guest& guest) { return !guest.socket.open(); });
  take_newcomers(expected, take);
}

// Each is heard before the next one comes, who may take his place.
void Door::take_newcomers(const Expected& expected, const Take& take) {
  const std::size_t most = kMostStrangers + 2 * static_cast<std::size_t>(identity_.size);
  rests_ = false;
  for (int i = 0; i < kNewcomersAtOnce; ++i) {
    Descriptor next = accept_one(listener_);
    if (!next.open()) {
      // Without a descriptor for him he would stay at the listener, and poll() never rest.
      if (errno == EMFILE || errno == ENFILE) {
        out_of_files_ = rests_ = true;
        if (!guests_.empty()) make_room();
      }
      return;
    }
    if (guests_.size() >= most) make_room();
    guests_.emplace_back(std::move(next), identity_, rank_);
    serve(guests_.back(), expected, take);
    if (!guests_.back().socket.open()) guests_.pop_back();
  }
}

void Door::serve(Guest& guest, const Expected& expected, const Take& take) {
  listen_to(guest, expected);
  if (guest.side.let_in() && guest.socket.open()) take(guest.side.guest(), std::move(guest.socket));
}

void Door::make_room() {
  auto leaves = std::find_if(guests_.begin(), guests_.end(),
                             [](const Guest& guest) { return !guest.side.named_the_job(); });
  if (leaves == guests_.end()) leaves = guests_.begin();
  guests_.erase(leaves);
}

// Reads at most one message.
void Door::listen_to(Guest& guest, const Expected& expected) {
  const std::size_t wanted = guest.side.wants();
  const ssize_t got = ::recv(guest.socket.get(), guest.said.data() + guest.bytes,
                             wanted - guest.bytes, MSG_DONTWAIT);
  if (got < 0 && again(errno)) return;
  if (got <= 0) return guest.socket.reset();
  guest.bytes += static_cast<std::size_t>(got);
  if (guest.bytes < wanted) return;
  guest.bytes = 0;
  const std::string answer = guest.side.hear({guest.said.data(), wanted}, expected);
  if (guest.side.refusal() != Refusal::none) ++refused_[guest.side.refusal()];
  // Some dozen bytes fit into the buffer of a new connection.
  const ssize_t sent =
      ::send(guest.socket.get(), answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  const bool goes_on = guest.side.refusal() == Refusal::none && sent == std::ssize(answer);
  if (!goes_on) guest.socket.reset();
}

std::string Door::turned_away() const {
  std::string text;
  for (const auto& [refusal, times] : refused_) {
    text += fmt::format("{}{} {}", text.empty() ? "; turned away: " : ", ", times, name(refusal));
  }
  if (out_of_files_) text += "; this process may open no more files: raise ulimit -n";
  return text;
}

}  // namespace thinwire::net
