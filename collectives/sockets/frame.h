// What travels between two ranks.
#pragma once

#include <compare>
#include <cstdint>

#include "collectives/failure.h"

namespace thinwire::sockets {

// Names a group in the whole job: the rank of its first member and how many it had named before.
struct GroupId {
  std::uint32_t leader = 0;
  std::uint32_t number = 0;
  auto operator<=>(const GroupId&) const = default;
};

// One operation of one group.
struct OperationId {
  GroupId group;
  std::uint64_t sequence = 0;
  auto operator<=>(const OperationId&) const = default;
};

// What a frame on the data connection carries.
enum class FrameKind : std::uint8_t {
  call,    // the sender has called the operation; a small first stream comes along at once
  first,   // more of the first stream: shares to their owners, or all there is
  second,  // the second stream: finished shares to everybody
};

// The stream of an operation (`Transfers`) to which a frame's payload belongs.
inline int stream_of(FrameKind kind) {
  return kind == FrameKind::second ? 1 : 0;
}

// Before every payload. The payloads of one stream come in order, so they need no place.
struct FrameHeader {
  OperationId id;
  std::uint64_t total = 0;  // bytes of the whole stream from this sender to this receiver
  std::uint32_t bytes = 0;  // of them in this frame
  FrameKind kind = FrameKind::call;
  // What the sender called, as numbers of the enums.
  std::uint8_t operation = 0;
  std::uint8_t reduce_op = 0;
  std::uint8_t dtype = 0;
};
static_assert(sizeof(FrameHeader) == 32, "32 bytes are less than 1 % of 4 KiB");

enum class NoticeKind : std::uint32_t {
  failure,  // the group has ended
  left,     // the sender calls no more operations of the group
  goodbye,  // the sender closes its connections
};

// On the notices connection; `bytes` of text follow.
struct NoticeHeader {
  NoticeKind kind = NoticeKind::goodbye;
  FailureKind failure = FailureKind::lost;
  GroupId group;
  // Of a failure: the first operation that fails. Of who left: how many he has called.
  std::int64_t sequence = 0;
  std::uint32_t bytes = 0;
  std::uint32_t unused = 0;
};

// Whether the words of a header are words at all.
inline bool plausible(const FrameHeader& header) {
  return header.kind <= FrameKind::second;
}
inline bool plausible(const NoticeHeader& header) {
  return header.kind <= NoticeKind::goodbye && header.failure <= FailureKind::disagree;
}

}  // namespace thinwire::sockets
