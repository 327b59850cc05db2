#include "collectives/sockets/mesh.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <set>
#include <thread>

#include "collectives/base/error.h"
#include "collectives/base/text.h"

namespace thinwire::sockets {
namespace {

using namespace std::chrono_literals;

// A first stream up to this size goes with the call, whether the peer has called or not.
constexpr std::int64_t kEagerBytes = 64 << 10;
// What may be under way to one peer in such calls; what it may have to keep.
constexpr std::int64_t kAheadBytes = 256 << 10;
// Counted for each of them, for what keeping it costs besides its bytes.
constexpr std::int64_t kAheadOverhead = 128;
// Read from one peer before the others have their turn.
constexpr std::int64_t kTurnBytes = 2 << 20;
constexpr std::size_t kNoticeText = 4000;
constexpr std::size_t kWasteBytes = 64 << 10;
constexpr std::size_t kMostUnknownGroups = 4096;

// Has the peer's kernel everything that was sent, or will it never?
bool drained(const Descriptor& socket) {
  int left = 0;
  if (::ioctl(socket.get(), SIOCOUTQ, &left) != 0 || left == 0) return true;
  pollfd entry{socket.get(), 0, 0};
  return ::poll(&entry, 1, 0) > 0 && (entry.revents & (POLLERR | POLLHUP)) != 0;
}

}  // namespace

const Failure* Group::ended() const {
  if (failure) return &*failure;
  return parent != nullptr ? parent->ended() : nullptr;
}

bool Group::fails(std::uint64_t sequence) const {
  if (failure && static_cast<std::int64_t>(sequence) >= failure->from) return true;
  return parent != nullptr && parent->ended() != nullptr;
}

int Group::place_of(int job_rank) const {
  const auto place = std::find(members.begin(), members.end(), job_rank);
  return place == members.end() ? -1 : static_cast<int>(place - members.begin());
}

Mesh::Mesh(const SocketOptions& options, std::vector<Connections> connections)
    : options_(options),
      wake_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      peers_(static_cast<std::size_t>(options.size)),
      pool_(options.chunk_bytes),
      waste_(kWasteBytes) {
  if (!wake_.open()) {
    throw IoError(fmt::format("cannot make an eventfd: {}; check the limits on open files",
                              net::error_text(errno)));
  }
  for (std::size_t rank = 0; rank < connections.size(); ++rank) {
    peers_[rank].sockets = std::move(connections[rank]);
  }
  auto world = std::make_unique<Group>();
  world->id = new_id();
  world->id.leader = 0;
  world->members.resize(static_cast<std::size_t>(options.size));
  std::iota(world->members.begin(), world->members.end(), 0);
  world->rank = options.rank;
  world_ = world.get();
  groups_[world->id] = std::move(world);
}

Mesh::~Mesh() {
  const bool clean = world_->ended() == nullptr;
  each_peer([&](int rank) {
    if (clean) send_notice(peer(rank), {NoticeKind::goodbye, FailureKind::lost, {}, 0, 0, 0}, {});
    ::shutdown(peer(rank).sockets.data.get(), SHUT_WR);
  });
  // Closing a socket into which a peer still writes throws away what it has not delivered.
  const Deadline deadline =
      Clock::now() + (clean ? options_.timeout : std::min(options_.timeout, 1000ms));
  for (auto pause = 50us;; pause = std::min(2 * pause, std::chrono::microseconds(10ms))) {
    bool done = true;
    each_peer([&](int rank) {
      done = done && drained(peer(rank).sockets.notices) &&
             (!clean || drained(peer(rank).sockets.data));
    });
    if (done || Clock::now() >= deadline) return;
    std::this_thread::sleep_for(pause);
  }
}

template <typename Body>
void Mesh::each_peer(Body body) {
  // Starting behind oneself spreads the load: no two ranks serve the same peer first.
  for (int step = 1; step < options_.size; ++step) body((options_.rank + step) % options_.size);
}

GroupId Mesh::new_id() {
  const std::lock_guard lock(mutex_);
  return {static_cast<std::uint32_t>(options_.rank), names_++};
}

Group& Mesh::add_group(GroupId id, std::vector<int> members, Group& parent) {
  const std::lock_guard lock(mutex_);
  auto group = std::make_unique<Group>();
  group->id = id;
  group->members = std::move(members);
  group->parent = &parent;
  group->rank = group->place_of(options_.rank);
  if (const auto early = early_failures_.find(id); early != early_failures_.end()) {
    group->failure = early->second;
    early_failures_.erase(early);
  }
  if (const auto early = early_left_.find(id); early != early_left_.end()) {
    group->left = std::move(early->second);
    early_left_.erase(early);
  }
  Group& added = *group;
  groups_[id] = std::move(group);
  return added;
}

void Mesh::leave(Group& group) {
  const std::lock_guard lock(mutex_);
  if (group.ended() != nullptr) return;
  for (const int rank : group.members) {
    if (rank == options_.rank) continue;
    send_notice(peer(rank),
                {NoticeKind::left, FailureKind::lost, group.id,
                 static_cast<std::int64_t>(group.posted), 0, 0},
                {});
  }
}

// --- Operations ---------------------------------------------------------------------------------

std::shared_ptr<PendingOperation> Mesh::post(Group& group, Operation call) {
  const std::lock_guard lock(mutex_);
  if (group.fails(group.posted)) raise(*group.ended());
  const auto operation = std::make_shared<PendingOperation>(
      OperationId{group.id, group.posted++}, std::move(call), group.rank,
      static_cast<int>(group.members.size()), options_.chunk_bytes, pool_);
  pending_.push_back(operation);
  adopt_early(group, operation);
  for (const int rank : group.members) {
    if (rank != options_.rank) send_frames(rank);
  }
  miss_those_who_left();
  forget_complete();
  // A thread that polls must also look out for what this operation needs.
  if (polling_) wake();
  if (group.fails(operation->id().sequence)) raise(*group.ended());
  return operation;
}

void Mesh::wait(Group& group, PendingOperation& operation, Deadline deadline) {
  std::unique_lock lock(mutex_);
  const auto complete = [&] {
    // The last frame may still be in writing.
    return operation.complete() &&
           std::none_of(pending_.begin(), pending_.end(),
                        [&](const auto& entry) { return entry.get() == &operation; });
  };
  for (;;) {
    // What is complete has succeeded, whatever happened since.
    if (complete()) return;
    if (group.fails(operation.id().sequence)) raise(*group.ended());
    if (Clock::now() >= deadline) {
      end_group(group, {FailureKind::lost, timed_out(group, operation)});
      tell_members(group);
    } else if (polling_) {
      changed_.wait_until(lock, deadline);
    } else {
      progress(lock, deadline);
    }
  }
}

void Mesh::abort(Group& group, Failure failure) {
  const std::lock_guard lock(mutex_);
  if (end_group(group, std::move(failure))) tell_members(group);
}

void Mesh::progress(std::unique_lock<std::mutex>& lock, Deadline deadline) {
  std::vector<pollfd> entries{{wake_.get(), POLLIN, 0}};
  std::vector<int> ranks;
  each_peer([&](int rank) {
    Peer& to = peer(rank);
    // poll() passes over negative descriptors.
    const auto events = static_cast<short>((to.can_read ? POLLIN : 0) |
                                           (to.can_write && has_frame(rank) ? POLLOUT : 0));
    entries.push_back({events != 0 ? to.sockets.data.get() : -1, events, 0});
    entries.push_back({to.lost ? -1 : to.sockets.notices.get(), POLLIN, 0});
    ranks.push_back(rank);
  });
  polling_ = true;
  lock.unlock();
  ::poll(entries.data(), entries.size(), net::poll_timeout(deadline));
  lock.lock();
  polling_ = false;

  if (entries[0].revents != 0) {
    std::uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &count, sizeof count);
  }
  // Notices first: they tell why the connections behind them end.
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (entries[2 * i + 2].revents != 0) receive_notices(ranks[i]);
  }
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    const int revents = entries[2 * i + 1].revents;
    if ((revents & ~POLLOUT) != 0) receive_frames(ranks[i]);
    if ((revents & ~POLLIN) != 0) peer(ranks[i]).full = false;
  }
  // What has come may have made new bytes ready for any peer.
  for (const int rank : ranks) send_frames(rank);
  miss_those_who_left();
  forget_complete();
  changed_.notify_all();
}

void Mesh::wake() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t sent = ::write(wake_.get(), &one, sizeof one);
}

void Mesh::forget_complete() {
  std::erase_if(pending_, [&](const auto& operation) {
    if (!operation->complete()) return false;
    return std::none_of(peers_.begin(), peers_.end(),
                        [&](const Peer& to) { return to.writing.operation == operation; });
  });
}

std::string Mesh::timed_out(const Group& group, const PendingOperation& operation) const {
  std::set<int> absent;
  std::set<int> slow;     // of whose first stream bytes are missing
  std::set<int> held_up;  // of whose second: maybe by others
  std::set<int> deaf;
  for (int member = 0; member < operation.size(); ++member) {
    if (member == operation.rank()) continue;
    const int rank = group.members[static_cast<std::size_t>(member)];
    if (!operation.call_received(member)) absent.insert(rank);
    if (operation.missing(member, 0) > 0) slow.insert(rank);
    if (operation.missing(member, 1) > 0) held_up.insert(rank);
    if (!operation.call_sent(member) || operation.needs_to_send(member)) deaf.insert(rank);
  }
  std::string who = "the last bytes were not taken";
  if (!absent.empty()) {
    who = fmt::format("rank {} did not take part", fmt::join(absent, ", "));
  } else if (!slow.empty()) {
    who = fmt::format("rank {} took part but did not go on", fmt::join(slow, ", "));
  } else if (!held_up.empty()) {
    who = fmt::format("rank {} did not pass on results", fmt::join(held_up, ", "));
  } else if (!deaf.empty()) {
    who = fmt::format("rank {} does not receive", fmt::join(deaf, ", "));
  }
  return fmt::format("{} timed out on rank {}: {}; see why, or raise the timeout",
                     operation.call().describe(), options_.rank, who);
}

// --- Sending ------------------------------------------------------------------------------------

namespace {

// Is there something that the member may get now?
bool may_send(PendingOperation& operation, int member) {
  if (!operation.call_received(member)) return false;
  return operation.sendable(member, 0) != nullptr || operation.sendable(member, 1) != nullptr;
}

}  // namespace

bool Mesh::has_frame(int rank) {
  Peer& to = peer(rank);
  if (to.writing.active) return true;
  for (const auto& operation : pending_) {
    const int member = find_group(operation->id().group)->place_of(rank);
    if (member < 0) continue;
    if (!operation->call_sent(member) || may_send(*operation, member)) return true;
  }
  return false;
}

// Calls first, which let the peers send; then the oldest operation, and in it the first stream, of
// which peers make the second.
bool Mesh::start_frame(int rank) {
  Peer& to = peer(rank);
  for (const auto& operation : pending_) {
    const int member = find_group(operation->id().group)->place_of(rank);
    if (member < 0 || operation->call_sent(member)) continue;
    operation->note_call_sent(member);
    const bool called = operation->call_received(member);
    const std::int64_t bytes = operation->unsent(member, 0);
    const Transfers::Message* first = operation->sendable(member, 0);
    const std::int64_t cost = bytes + kAheadOverhead;
    const bool fits = called || to.bytes_ahead + cost <= kAheadBytes;
    const bool along = first != nullptr && first->bytes == bytes && bytes <= kEagerBytes && fits;
    if (along && !called) {
      to.ahead[operation->id()] = cost;
      to.bytes_ahead += cost;
    }
    write_frame(to, operation, member, FrameKind::call,
                along ? operation->take_sendable(member, 0) : Transfers::Message{});
    return true;
  }
  for (const auto& operation : pending_) {
    const int member = find_group(operation->id().group)->place_of(rank);
    if (member < 0 || !may_send(*operation, member)) continue;
    for (const FrameKind kind : {FrameKind::first, FrameKind::second}) {
      const int stream = stream_of(kind);
      if (operation->sendable(member, stream) == nullptr) continue;
      write_frame(to, operation, member, kind, operation->take_sendable(member, stream));
      return true;
    }
  }
  return false;
}

void Mesh::write_frame(Peer& to, const std::shared_ptr<PendingOperation>& operation, int member,
                       FrameKind kind, const Transfers::Message& message) {
  Writing& writing = to.writing;
  writing.header = operation->header(member, kind);
  writing.header.bytes = static_cast<std::uint32_t>(message.bytes);
  writing.message = message;
  writing.payload = message.data;
  writing.written = 0;
  writing.operation = operation;
  writing.member = member;
  writing.active = true;
}

void Mesh::send_frames(int rank) {
  Peer& to = peer(rank);
  std::int64_t turn = 0;
  while (to.can_write && !to.full && turn < kTurnBytes) {
    Writing& writing = to.writing;
    if (!writing.active && !start_frame(rank)) return;
    constexpr std::size_t kHeader = sizeof(FrameHeader);
    const std::size_t whole = kHeader + writing.header.bytes;
    std::array<iovec, 2> parts{};
    std::size_t count = 0;
    if (writing.written < kHeader) {
      parts[count++] = {reinterpret_cast<char*>(&writing.header) + writing.written,
                        kHeader - writing.written};
    }
    const std::size_t payload_written = std::max(writing.written, kHeader) - kHeader;
    if (payload_written < writing.header.bytes) {
      parts[count++] = {const_cast<char*>(writing.payload) + payload_written,
                        writing.header.bytes - payload_written};
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = count;
    const ssize_t sent = ::sendmsg(to.sockets.data.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      to.full = net::again(errno);
      if (!to.full) {
        // The peer reads no more; whether that matters is seen once it is known why.
        to.can_write = false;
        stop_writing(to);
      }
      return;
    }
    writing.written += static_cast<std::size_t>(sent);
    turn += sent;
    to.full = writing.written < whole;
    if (!to.full) finish_frame(to);
  }
}

void Mesh::finish_frame(Peer& to) {
  Writing& writing = to.writing;
  if (writing.operation && writing.header.bytes > 0) {
    writing.operation->sent(writing.member, stream_of(writing.header.kind), writing.message);
  }
  stop_writing(to);
}

void Mesh::stop_writing(Peer& to) {
  to.writing.active = false;
  to.writing.operation.reset();
  to.writing.kept.clear();
}

// --- Receiving ----------------------------------------------------------------------------------

void Mesh::receive_frames(int rank) {
  Peer& from = peer(rank);
  Reading& reading = from.reading;
  std::int64_t turn = 0;
  while (from.can_read && turn < kTurnBytes) {
    // What is left of a payload goes straight to its place; where that place is in one piece the
    // next header comes in the same call.
    std::array<iovec, 2> parts{};
    std::size_t count = 0;
    const PendingOperation::Room room = room_for_payload(rank);
    if (room.bytes > 0) parts[count++] = {room.to, static_cast<std::size_t>(room.bytes)};
    if (room.bytes == reading.payload_left) {
      parts[count++] = {reading.next.data() + reading.next_bytes,
                        reading.next.size() - reading.next_bytes};
    }
    const std::int64_t asked =
        room.bytes + (count > 0 && room.bytes == reading.payload_left
                          ? static_cast<std::int64_t>(reading.next.size() - reading.next_bytes)
                          : 0);
    const ssize_t got = ::readv(from.sockets.data.get(), parts.data(), static_cast<int>(count));
    if (got < 0 && net::again(errno)) return;
    if (got <= 0) {
      from.can_read = false;
      return;
    }
    const std::int64_t payload = std::min<std::int64_t>(got, room.bytes);
    reading.next_bytes += static_cast<std::size_t>(got - payload);
    if (payload > 0) take_payload(reading, payload);
    if (reading.next_bytes == reading.next.size()) begin_frame(rank);
    turn += got;
    if (got < asked) return;
  }
}

PendingOperation::Room Mesh::room_for_payload(int rank) {
  Reading& reading = peer(rank).reading;
  if (reading.payload_left == 0) return {};
  PendingOperation::Room room;
  if (reading.operation) {
    room = reading.operation->room(reading.member, stream_of(reading.header.kind));
    if (room.bytes == 0) {
      const OperationId id = reading.operation->id();
      reading.operation.reset();
      refuse(rank, *find_group(id.group), id.sequence,
             "sent a result before it had all terms of it");
    }
  } else if (reading.early != nullptr) {
    room.to = reading.early->payload.data() + (reading.header.bytes - reading.payload_left);
    room.bytes = reading.payload_left;
  }
  if (room.bytes == 0) room = {waste_.data(), static_cast<std::int64_t>(waste_.size())};
  room.bytes = std::min(room.bytes, reading.payload_left);
  return room;
}

void Mesh::take_payload(Reading& reading, std::int64_t bytes) {
  reading.payload_left -= bytes;
  if (reading.operation) {
    reading.operation->arrived(reading.member, stream_of(reading.header.kind), bytes);
  }
  if (reading.payload_left > 0) return;
  reading.operation.reset();
  reading.early = nullptr;
}

// A header is complete: whose bytes follow?
void Mesh::begin_frame(int rank) {
  Peer& from = peer(rank);
  Reading& reading = from.reading;
  std::memcpy(&reading.header, reading.next.data(), reading.next.size());
  reading.next_bytes = 0;
  reading.payload_left = reading.header.bytes;
  const FrameHeader& header = reading.header;
  if (!plausible(header)) {
    refuse(rank, *world_, 0, "sent what this program does not send");
    return;
  }
  if (header.kind == FrameKind::call) release_ahead(from, header.id);

  Group* group = find_group(header.id.group);
  if (group != nullptr && group->fails(header.id.sequence)) return;
  if (const auto operation = find_operation(header.id)) {
    if (accept(rank, *group, *operation, header) && header.bytes > 0) {
      reading.operation = operation;
      reading.member = group->place_of(rank);
    }
    return;
  }
  if (group != nullptr && header.id.sequence < group->posted) {
    // The operation is over here, so nothing was expected from this rank but its call.
    if (header.total > 0) {
      refuse(rank, *group, header.id.sequence,
             fmt::format("sent {} bytes where none were expected", header.total));
    }
    return;
  }
  std::int64_t kept = header.bytes;
  for (const auto& [id, early] : from.early) kept += early.header.bytes;
  if (header.kind != FrameKind::call || kept > kAheadBytes || from.early.contains(header.id)) {
    refuse(rank, *world_, 0, "sent what this program does not send");
    return;
  }
  reading.early = &from.early[header.id];
  reading.early->header = header;
  reading.early->payload.resize(header.bytes);
  if (header.bytes == 0) reading.early = nullptr;
}

// Is this frame what was expected? If not, the group ends.
bool Mesh::accept(int rank, Group& group, PendingOperation& operation, const FrameHeader& header) {
  const int member = group.place_of(rank);
  if (member < 0) {
    refuse(rank, group, header.id.sequence, "sent something to a group that it is not in");
    return false;
  }
  const std::string what = operation.mismatch(member, header);
  if (!what.empty()) {
    refuse(rank, group, header.id.sequence, what);
    return false;
  }
  if (header.kind == FrameKind::call) operation.note_call_received(member);
  return true;
}

void Mesh::refuse(int rank, Group& group, std::uint64_t sequence, const std::string& what) {
  if (group.ended() != nullptr) return;
  end_group(group, {FailureKind::disagree,
                    fmt::format("rank {} {}: ranks called different operations; every rank must "
                                "call the same operations in the same order",
                                rank, what),
                    static_cast<std::int64_t>(sequence)});
  tell_members(group);
}

// The peer has called an operation: what was sent for it in advance is no longer ahead of it.
void Mesh::release_ahead(Peer& from, const OperationId& id) {
  const auto ahead = from.ahead.find(id);
  if (ahead == from.ahead.end()) return;
  from.bytes_ahead -= ahead->second;
  from.ahead.erase(ahead);
}

// Hands a new operation what came for it before it was called.
void Mesh::adopt_early(Group& group, const std::shared_ptr<PendingOperation>& operation) {
  for (const int rank : group.members) {
    Peer& from = peer(rank);
    const auto found = from.early.find(operation->id());
    if (found == from.early.end()) continue;
    Early& early = found->second;
    if (!accept(rank, group, *operation, early.header)) return;
    std::int64_t have = early.header.bytes;
    const int member = group.place_of(rank);
    if (from.reading.early == &early) {
      have -= from.reading.payload_left;
      from.reading.early = nullptr;
      from.reading.operation = operation;
      from.reading.member = member;
    }
    for (std::int64_t done = 0; done < have;) {
      const PendingOperation::Room room = operation->room(member, 0);
      const std::int64_t bytes = std::min(room.bytes, have - done);
      std::memcpy(room.to, early.payload.data() + done, static_cast<std::size_t>(bytes));
      operation->arrived(member, 0, bytes);
      done += bytes;
    }
    from.early.erase(found);
  }
}

// --- The end of ranks and groups ----------------------------------------------------------------

void Mesh::receive_notices(int rank) {
  Peer& from = peer(rank);
  std::array<char, 4096> buffer;
  const ssize_t got =
      ::recv(from.sockets.notices.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
  if (got < 0 && net::again(errno)) return;
  if (got <= 0) {
    from.lost = true;
    if (!from.said_goodbye) {
      fail_world(fmt::format("rank {} closed its connection; look there for why", rank));
    }
    return;
  }
  from.notices.insert(from.notices.end(), buffer.data(), buffer.data() + got);
  NoticeHeader header;
  while (from.notices.size() >= sizeof header) {
    std::memcpy(&header, from.notices.data(), sizeof header);
    // Groups that this rank does not know yet are few: ranks make them together.
    const bool too_many = early_failures_.size() + early_left_.size() > kMostUnknownGroups;
    if (!plausible(header) || header.bytes > kNoticeText || too_many) {
      from.lost = true;
      fail_world(fmt::format("rank {} sent what this program does not send", rank));
      return;
    }
    if (from.notices.size() < sizeof header + header.bytes) return;
    const std::string text =
        printable({from.notices.data() + sizeof header, header.bytes}, kNoticeText);
    const auto end = from.notices.begin() + static_cast<std::ptrdiff_t>(sizeof header);
    from.notices.erase(from.notices.begin(), end + static_cast<std::ptrdiff_t>(header.bytes));
    if (header.kind == NoticeKind::goodbye) {
      from.said_goodbye = true;
    } else if (header.kind == NoticeKind::left) {
      Group* group = find_group(header.group);
      (group != nullptr ? group->left : early_left_[header.group])[rank] = header.sequence;
    } else if (Group* group = find_group(header.group)) {
      if (!end_group(*group, {header.failure, text, header.sequence})) continue;
      // Once more to everybody, though the sender did: this rank may now end, and a peer that sees
      // that before it hears the sender would blame this one.
      tell_members(*group);
    } else {
      early_failures_[header.group] = {header.failure, text, header.sequence};
    }
  }
}

void Mesh::send_notice(Peer& to, NoticeHeader header, const std::string& reason) {
  const std::string text = reason.substr(0, kNoticeText);
  header.bytes = static_cast<std::uint32_t>(text.size());
  std::vector<char> bytes(sizeof header + text.size());
  std::memcpy(bytes.data(), &header, sizeof header);
  std::copy(text.begin(), text.end(), bytes.begin() + sizeof header);
  // Notices are few and small: one that does not fit goes to somebody who reads nothing any more.
  [[maybe_unused]] const ssize_t sent =
      ::send(to.sockets.notices.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

void Mesh::fail_world(const std::string& reason) {
  if (world_->ended() != nullptr) return;
  end_group(*world_, {FailureKind::lost, reason});
  // Others may see this rank end before they see why.
  tell_members(*world_);
}

// A rank that left is an error once an operation needs it: one that it has not called, or, once it
// has closed its connections, one to which it owes something. What it sent before is read first.
void Mesh::miss_those_who_left() {
  each_peer([&](int rank) {
    const Peer& gone = peer(rank);
    for (std::size_t i = 0; i < pending_.size(); ++i) {
      PendingOperation& operation = *pending_[i];
      Group& group = *find_group(operation.id().group);
      const int member = group.place_of(rank);
      if (member < 0) continue;
      if (!gone.can_write) operation.note_call_sent(member);
      const auto left = group.left.find(rank);
      const auto sequence = static_cast<std::int64_t>(operation.id().sequence);
      const bool never_called = left != group.left.end() && sequence >= left->second;
      // Without a goodbye it has failed, but what it sent before that may still complete.
      const bool closed = (gone.said_goodbye || gone.lost) && !gone.can_read &&
                          (operation.needs_to_receive(member) || operation.needs_to_send(member));
      if (!never_called && !closed) continue;
      end_group(group,
                {FailureKind::lost, left_before(rank, operation.call().describe()), sequence});
      tell_members(group);
      return;
    }
  });
}

// False where it is no news. What a group fails for first is said.
bool Mesh::end_group(Group& group, Failure failure) {
  if (group.parent != nullptr && group.parent->ended() != nullptr) return false;
  if (!group.failure) {
    group.failure = std::move(failure);
  } else if (failure.from < group.failure->from) {
    group.failure->from = failure.from;
  } else {
    return false;
  }
  drop_what_fails();
  changed_.notify_all();
  if (polling_) wake();
  return true;
}

void Mesh::tell_members(const Group& group) {
  for (const int rank : group.members) {
    if (rank == options_.rank) continue;
    send_notice(peer(rank),
                {NoticeKind::failure, group.ended()->kind, group.id, group.ended()->from, 0, 0},
                group.ended()->reason);
  }
}

// Lets go of the tensors of operations that fail. Connections stay in step for the other groups: a
// frame that is half written or half read goes on without its operation.
void Mesh::drop_what_fails() {
  const auto ended = [&](const PendingOperation& operation) {
    return find_group(operation.id().group)->fails(operation.id().sequence);
  };
  for (Peer& each : peers_) {
    Writing& writing = each.writing;
    if (writing.operation && ended(*writing.operation)) {
      writing.operation.reset();
      if (writing.written == 0) {
        writing.active = false;
      } else if (writing.payload != nullptr) {
        writing.kept.assign(writing.payload, writing.payload + writing.header.bytes);
        writing.payload = writing.kept.data();
      }
    }
    if (each.reading.operation && ended(*each.reading.operation)) each.reading.operation.reset();
    std::erase_if(each.early, [&](const auto& entry) {
      const Group* group = find_group(entry.first.group);
      if (group == nullptr || !group->fails(entry.first.sequence)) return false;
      if (each.reading.early == &entry.second) each.reading.early = nullptr;
      return true;
    });
  }
  std::erase_if(pending_, [&](const auto& operation) { return ended(*operation); });
}

Group* Mesh::find_group(GroupId id) {
  const auto found = groups_.find(id);
  return found == groups_.end() ? nullptr : found->second.get();
}

std::shared_ptr<PendingOperation> Mesh::find_operation(const OperationId& id) {
  const auto found = std::find_if(pending_.begin(), pending_.end(),
                                  [&](const auto& operation) { return operation->id() == id; });
  return found == pending_.end() ? nullptr : *found;
}

}  // namespace thinwire::sockets
