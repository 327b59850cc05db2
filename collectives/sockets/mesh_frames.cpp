// The mesh's frames: what goes to each peer next, and where what comes from him belongs.
#include <fmt/format.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "collectives/sockets/mesh.h"

namespace thinwire::sockets {
namespace {

// A first stream up to this size goes with the call, whether the peer has called or not.
constexpr std::int64_t kEagerBytes = 64 << 10;
// So many bytes may be under way to one peer in calls that it has not answered with its own: it has
// to keep them.
constexpr std::int64_t kAheadBytes = 256 << 10;
// What keeping such a call costs the peer besides its bytes.
constexpr std::int64_t kAheadOverhead = 128;
// So many bytes are read from, or written to, one peer before the others have their turn.
constexpr std::int64_t kTurnBytes = 2 << 20;

// Whether there is a message that the member may get now.
bool may_send(PendingOperation& operation, int member) {
  if (!operation.call_received(member)) return false;
  return operation.sendable(member, 0) != nullptr || operation.sendable(member, 1) != nullptr;
}

}  // namespace

// --- Sending ------------------------------------------------------------------------------------

bool Mesh::has_frame(int rank) {
  Peer& to = peer(rank);
  if (to.writer.active()) return true;
  for (const auto& operation : pending_) {
    const int member = find_group(operation->id().group)->place_of(rank);
    if (member < 0) continue;
    if (!operation->call_sent(member) || may_send(*operation, member)) return true;
  }
  return false;
}

// Calls go first, as they let the peers send. Then the oldest operation's messages go, those of the
// first stream before those of the second, as the peers make their second stream of them.
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
    to.writer.begin(operation, member, FrameKind::call,
                    along ? operation->take_sendable(member, 0) : Transfers::Message{});
    return true;
  }
  for (const auto& operation : pending_) {
    const int member = find_group(operation->id().group)->place_of(rank);
    if (member < 0 || !may_send(*operation, member)) continue;
    for (const FrameKind kind : {FrameKind::first, FrameKind::second}) {
      const int stream = stream_of(kind);
      if (operation->sendable(member, stream) == nullptr) continue;
      to.writer.begin(operation, member, kind, operation->take_sendable(member, stream));
      return true;
    }
  }
  return false;
}

void Mesh::send_frames(int rank) {
  Peer& to = peer(rank);
  std::int64_t turn = 0;
  while (to.can_write && !to.full && turn < kTurnBytes) {
    if (!to.writer.active() && !start_frame(rank)) return;
    const auto [outcome, bytes] = to.writer.write(to.sockets.data);
    turn += bytes;
    to.full = outcome == FrameWriter::Outcome::kernel_is_full;
    to.can_write = outcome != FrameWriter::Outcome::peer_reads_no_more;
  }
}

// --- Receiving ----------------------------------------------------------------------------------

void Mesh::receive_frames(int rank) {
  Peer& from = peer(rank);
  Reading& reading = from.reading;
  std::int64_t turn = 0;
  while (from.can_read && turn < kTurnBytes) {
    // What is left of a payload goes straight to its place. If there is room for all of it, the
    // next header is read in the same call.
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

// A header is complete. Finds out where the bytes that follow it belong.
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

// False, and the group ends, if this frame is not what was expected.
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

// The peer has called an operation, so what was sent for it in advance is no longer ahead of it.
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

}  // namespace thinwire::sockets
