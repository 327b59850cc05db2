// The order in which samples are learnt. It is a function of the seed, the epoch and the number of
// samples that all ranks together have consumed, and not of the world size. So a group of another
// size can go on where this one stopped.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace thinwire {

// Where a run stands in its data; replicated state.
struct DataPosition {
  std::int64_t epoch = 0;
  std::int64_t consumed = 0;  // samples of this epoch, by all ranks; in [0, dataset size)

  bool operator==(const DataPosition&) const = default;
};

// How a step's samples are dealt.
struct BatchLayout {
  std::int64_t world_size = 1;
  std::int64_t batch_size = 1;  // samples per rank and micro-batch
  std::int64_t accumulate = 1;  // micro-batches per step

  std::int64_t samples_per_step() const { return world_size * batch_size * accumulate; }
};

// [begin, end) of a list.
struct IndexRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  std::int64_t size() const { return end - begin; }
  bool operator==(const IndexRange&) const = default;
};

// One rank's part of the samples of one step.
struct RankBatch {
  // Sample indices, `accumulate` lists; the last lists of an epoch may be short or empty.
  std::vector<std::vector<std::int64_t>> micro_batches;
  // Samples of the step on all ranks, at least 1. A rank's sum of losses times world_size / total
  // is its part of a mean over ranks that weights every sample alike.
  std::int64_t total = 0;
  // Where the next step starts.
  DataPosition next;
};

// The permutation of [0, dataset_size) for each epoch: Fisher-Yates driven by Philox. It keeps the
// permutation of one epoch, so threads must not share it.
class EpochOrder {
 public:
  // `dataset_size` > 0.
  EpochOrder(std::int64_t dataset_size, std::uint64_t seed);

  std::int64_t dataset_size() const { return static_cast<std::int64_t>(order_.size()); }
  // Valid until the next call.
  std::span<const std::int64_t> operator()(std::int64_t epoch);

 private:
  std::uint64_t seed_;
  std::int64_t epoch_ = -1;  // that `order_` is of
  std::vector<std::int64_t> order_;
};

// The samples of the step at `position` are the next min(samples_per_step, what is left of the
// epoch) of the order. They are cut into micro-batches of world_size * batch_size samples (the last
// may be short), and each of these into contiguous shares in the order of ranks.
RankBatch next_batch(EpochOrder& order, const DataPosition& position, const BatchLayout& layout,
                     std::int64_t rank);

// Steps of a whole epoch.
std::int64_t steps_per_epoch(std::int64_t dataset_size, const BatchLayout& layout);

// `rank`'s contiguous share of [0, size): shares differ by at most one and cover it in the order of
// ranks. Also how evaluation splits a data set.
IndexRange share_of_rank(std::int64_t size, std::int64_t world_size, std::int64_t rank);

}  // namespace thinwire
