#include "collectives/sockets/group.h"

#include <algorithm>

namespace thinwire::sockets {

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

}  // namespace thinwire::sockets
