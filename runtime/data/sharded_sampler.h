// A sampler for torch::data loaders that deals samples to the ranks.
#pragma once

#include <torch/data/samplers/base.h>
#include <torch/serialize/archive.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "collectives/base/state.h"
#include "runtime/data/sampler.h"

namespace thinwire {

// Deals the indices of a data set to ranks, in a new order in each epoch that follows from the
// seed, for torch::data::make_data_loader:
//
//   thinwire::ShardedSampler sampler(size, seed, ranks->rank(), ranks->size());
//   auto loader = torch::data::make_data_loader(data, sampler, options);
//
// Copies share one position: the loader works on a copy, and the sampler above tells its position.
//
// Each step deals the next ranks * batch samples of the order, in contiguous shares, so that every
// sample comes once in an epoch. In the last step of an epoch shares may be short, and differ by
// one: `finish(samples)` weighs them. Where fewer samples are left than there are ranks, some ranks
// have none and so one step less: they call `join`, or `finish(0)`.
//
// The position (`visit`, `save` and `load`) counts the samples that all ranks have
// consumed, so a run may go on with another number of ranks. It is that of the indices handed out:
// a loader with workers has fetched some of them ahead.
class ShardedSampler final : public torch::data::samplers::Sampler<> {
 public:
  // `size` > 0, 0 <= rank < ranks.
  ShardedSampler(std::int64_t size, std::uint64_t seed, int rank, int ranks);

  // The loader calls this at the start of an epoch. If the position was restored in the middle of
  // an epoch, that epoch goes on; otherwise the next one begins.
  void reset(std::optional<std::size_t> new_size = std::nullopt) override;
  // This rank's next `batch_size` indices or fewer; none at the end of an epoch.
  std::optional<std::vector<std::size_t>> next(std::size_t batch_size) override;

  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;
  void visit(StateVisitor& visitor);

  const DataPosition& position() const { return state_->position; }

 private:
  struct State {
    EpochOrder order;
    DataPosition position;
    bool ended = false;  // the epoch before `position` is all dealt, and `reset` was not called yet
  };
  std::shared_ptr<State> state_;
  int rank_;
  int ranks_;
};

}  // namespace thinwire
