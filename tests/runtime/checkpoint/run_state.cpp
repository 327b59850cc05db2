#include "tests/runtime/checkpoint/run_state.h"

#include <torch/torch.h>

#include <stdexcept>

#include "collectives/threads/thread_communicator.h"

namespace thinwire::testing {
namespace {

StateEntry replicated(const std::string& name, at::Tensor tensor) {
  return {name, StateKind::replicated, std::move(tensor)};
}
StateEntry averaged(const std::string& name, at::Tensor tensor) {
  return {name, StateKind::averaged, std::move(tensor)};
}

at::Tensor numbers(std::int64_t begin, std::int64_t end) {
  return torch::arange(begin, end, torch::kFloat);
}

}  // namespace

void ShownState::show(StateVisitor& visitor) {
  for (const auto& entry : entries) visitor.tensor(entry);
  for (auto& [name, value] : counters) visitor.counter(name, value);
}

const at::Tensor& ShownState::at(const std::string& name) const {
  for (const auto& entry : entries) {
    if (entry.name == name) return entry.tensor;
  }
  throw std::out_of_range(name);
}

std::int64_t range_begin(int rank, int world_size) {
  return ranged_size * rank / world_size;
}

RunState make_run(int rank, int world_size, std::int64_t step) {
  const std::int64_t begin = range_begin(rank, world_size);
  const std::int64_t end = range_begin(rank + 1, world_size);
  RunState run;
  run.model.entries = {
      // As a model has it: a leaf that requires a gradient, here also not contiguous.
      replicated("conv1.weight",
                 (numbers(0, 12) + step).view({3, 4}).t().detach().requires_grad_(true)),
      replicated("conv1.bias", numbers(step, step + 4)),
      replicated("seen", torch::tensor(7 * step, torch::kLong)),
  };
  run.other.entries = {
      replicated("momentum/conv1.weight", (numbers(0, 12) * 0.5 - step).view({4, 3})),
      averaged("residual/conv1.weight", (numbers(0, 12) + step + 8 * rank).view({4, 3})),
      averaged("votes", torch::tensor({100 + rank}, torch::kLong)),
      {"owned/bucket0", StateKind::ranged, numbers(step + begin, step + end), begin, end},
  };
  run.other.counters = {{"attempted_steps", step}, {"committed_steps", step - 1}};
  return run;
}

RunState make_blank_run(int rank, int world_size) {
  const torch::NoGradGuard no_grad;
  RunState run = make_run(rank, world_size, 0);
  for (auto* state : {&run.model, &run.other}) {
    for (auto& entry : state->entries) entry.tensor.fill_(-1);
    for (auto& [name, value] : state->counters) value = -1;
  }
  return run;
}

bool same(const ShownState& a, const ShownState& b) {
  if (a.counters != b.counters || a.entries.size() != b.entries.size()) return false;
  for (std::size_t i = 0; i < a.entries.size(); ++i) {
    const auto& [x, y] = std::tie(a.entries[i].tensor, b.entries[i].tensor);
    if (a.entries[i].name != b.entries[i].name || x.dtype() != y.dtype() || !x.equal(y)) {
      return false;
    }
  }
  return true;
}

bool same(const RunState& a, const RunState& b) {
  return same(a.model, b.model) && same(a.other, b.other);
}

SaveResult save(FileSystem& files, Communicator& communicator, const std::string& root,
                RunState state) {
  StateCollector model;
  StateCollector other;
  state.model.show(model);
  state.other.show(other);
  const std::int64_t step = state.other.counters.at("attempted_steps");
  return save_checkpoint(files, communicator, {root, step, {{"optimizer", "sgd"}}}, model, other);
}

std::vector<SaveResult> save_run(FileSystem& files, const std::string& root, int world_size,
                                 std::int64_t step) {
  std::vector<SaveResult> results(static_cast<std::size_t>(world_size));
  run_ranks(world_size, [&](std::unique_ptr<Communicator> communicator) {
    const int rank = communicator->rank();
    results[static_cast<std::size_t>(rank)] =
        save(files, *communicator, root, make_run(rank, world_size, step));
  });
  return results;
}

std::vector<std::string> load(FileSystem& files, const std::string& folder, int rank,
                              int world_size, RunState& state) {
  return load_checkpoint(
      files, folder, read_manifest(files, folder), rank, world_size,
      [&](StateVisitor& visitor) { state.model.show(visitor); },
      [&](StateVisitor& visitor) { state.other.show(visitor); });
}

}  // namespace thinwire::testing
