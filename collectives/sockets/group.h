// Ranks of the job that act together over sockets.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "collectives/failure.h"
#include "collectives/sockets/frame.h"

namespace thinwire::sockets {

// Guarded by the mesh; everything but `posted`, `failure` and `left` is fixed.
struct Group {
  GroupId id;
  std::vector<int> members;  // ranks in the job, by place in the group
  int rank = 0;              // this rank's place
  Group* parent = nullptr;
  std::uint64_t posted = 0;  // operations so far
  std::optional<Failure> failure;
  // Members that have left, by their ranks in the job: how many operations they have called.
  std::map<int, std::int64_t> left;

  // Does the operation of this number fail?
  bool fails(std::uint64_t sequence) const;
  // Its own end, or that of a group it was split from.
  const Failure* ended() const;
  // The place of a rank of the job, or -1.
  int place_of(int job_rank) const;
};

}  // namespace thinwire::sockets
