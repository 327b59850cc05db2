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
#include <numeric>
#include <set>
#include <thread>

#include "collectives/base/error.h"

namespace thinwire::sockets {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kWasteBytes = 64 << 10;
constexpr std::size_t kMostUnknownGroups = 4096;

// True once the peer's kernel has everything that was sent, or if it will never have it.
bool drained(const Descriptor& socket) {
  int left = 0;
  if (::ioctl(socket.get(), SIOCOUTQ, &left) != 0 || left == 0) return true;
  pollfd entry{socket.get(), 0, 0};
  return ::poll(&entry, 1, 0) > 0 && (entry.revents & (POLLERR | POLLHUP)) != 0;
}

}  // namespace

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
    if (clean) {
      send_notice(peer(rank).sockets.notices, {NoticeKind::goodbye, FailureKind::lost, {}, 0, 0, 0},
                  {});
    }
    ::shutdown(peer(rank).sockets.data.get(), SHUT_WR);
  });
  // Closing a socket at once would throw away what the kernel has not delivered yet, if the peer is
  // still writing to it.
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
    send_notice(peer(rank).sockets.notices,
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
    // A call without bytes may still be in writing; then the operation is among those pending.
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
  // Notices come first, as they tell why a data connection ends.
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
                        [&](const Peer& to) { return to.writer.operation() == operation; });
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

// --- The end of ranks and groups ----------------------------------------------------------------

void Mesh::receive_notices(int rank) {
  Peer& from = peer(rank);
  const auto outcome = from.notices.read(from.sockets.notices);
  if (outcome == NoticeReader::Outcome::nothing) return;
  if (outcome == NoticeReader::Outcome::closed) {
    from.lost = true;
    if (!from.said_goodbye) {
      fail_world(fmt::format("rank {} closed its connection; look there for why", rank));
    }
    return;
  }
  // Groups that this rank does not know yet are few: ranks make them together.
  const auto too_many = [&] {
    return early_failures_.size() + early_left_.size() > kMostUnknownGroups;
  };
  while (!too_many()) {
    const auto notice = from.notices.next();
    if (!notice) break;
    take_notice(rank, *notice);
  }
  if (!from.notices.malformed() && !too_many()) return;
  from.lost = true;
  fail_world(fmt::format("rank {} sent what this program does not send", rank));
}

void Mesh::take_notice(int rank, const Notice& notice) {
  const auto& [header, text] = notice;
  Group* const group = find_group(header.group);
  switch (header.kind) {
    case NoticeKind::goodbye:
      peer(rank).said_goodbye = true;
      return;
    case NoticeKind::left:
      (group != nullptr ? group->left : early_left_[header.group])[rank] = header.sequence;
      return;
    case NoticeKind::failure:
      if (group == nullptr) {
        early_failures_[header.group] = {header.failure, text, header.sequence};
      } else if (end_group(*group, {header.failure, text, header.sequence})) {
        // Once more to everybody, though the sender did: this rank may now end, and a peer that
        // sees that before it hears the sender would blame this one.
        tell_members(*group);
      }
      return;
  }
}

void Mesh::fail_world(const std::string& reason) {
  if (world_->ended() != nullptr) return;
  end_group(*world_, {FailureKind::lost, reason});
  // This rank may end before the others have seen the reason for themselves.
  tell_members(*world_);
}

// Ends the groups in which an operation needs a rank that has left: one that the rank has not
// called, or, once it has closed its connections and everything from it has been read, one that
// still lacks something from it.
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
      // A rank that ended without a goodbye has failed, but what it sent before may still complete
      // an operation.
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

// False if that is known already. The first failure stays the one that is reported.
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
    send_notice(peer(rank).sockets.notices,
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
    if (each.writer.operation() && ended(*each.writer.operation())) each.writer.let_go();
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
