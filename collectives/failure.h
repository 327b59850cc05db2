// Why a group can do no more.
#pragma once

#include <cstdint>
#include <string>

#include "collectives/base/error.h"

namespace thinwire {

enum class FailureKind : std::uint32_t {
  lost,      // PeerLost
  disagree,  // RanksDisagree
};

struct Failure {
  FailureKind kind = FailureKind::lost;
  std::string reason;
  // The first operation that fails, counted from 0; those before it may still complete.
  std::int64_t from = 0;
};

// Throws the exception of that kind.
[[noreturn]] inline void raise(const Failure& failure) {
  if (failure.kind == FailureKind::disagree) throw RanksDisagree(failure.reason);
  throw PeerLost(failure.reason);
}

}  // namespace thinwire
