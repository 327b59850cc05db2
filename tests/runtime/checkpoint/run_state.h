// A made-up run's state, every value of which follows from (rank, world size, step) and is exact.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "collectives/base/state.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/load.h"

namespace thinwire::testing {

// Some state that can be shown.
struct ShownState {
  std::vector<StateEntry> entries;
  std::map<std::string, std::int64_t> counters;

  void show(StateVisitor& visitor);
  const at::Tensor& at(const std::string& name) const;
};

struct RunState {
  ShownState model;
  ShownState other;
};

inline constexpr std::int64_t ranged_size = 101;
// Rank r of n holds [range_begin(r, n), range_begin(r + 1, n)) of "owned/bucket0".
std::int64_t range_begin(int rank, int world_size);

// The state of one rank: replicated "conv1.weight" [4, 3], "conv1.bias" [4], "seen" (int64, no
// dimensions), "momentum/conv1.weight"; averaged "residual/conv1.weight" (base + 8 rank) and
// "votes" (int64, 100 + rank); ranged "owned/bucket0" (step + index).
RunState make_run(int rank, int world_size, std::int64_t step);
// The same names and shapes, all values -1: to be loaded into.
RunState make_blank_run(int rank, int world_size);

// Every tensor's dtype, shape and bits, and every counter.
bool same(const ShownState& a, const ShownState& b);
bool same(const RunState& a, const RunState& b);

// `state` saved as the checkpoint of its step below `root`, by one rank of a group.
SaveResult save(FileSystem& files, Communicator& communicator, const std::string& root,
                RunState state);
// The checkpoint of `step` of a run of `world_size` ranks; returns all ranks' results.
std::vector<SaveResult> save_run(FileSystem& files, const std::string& root, int world_size,
                                 std::int64_t step);
// A checkpoint loaded into `state`; returns the warnings.
std::vector<std::string> load(FileSystem& files, const std::string& folder, int rank,
                              int world_size, RunState& state);

}  // namespace thinwire::testing
