#include "runtime/data/sampler.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/philox.h"

namespace thinwire {

EpochOrder::EpochOrder(std::int64_t dataset_size, std::uint64_t seed) : seed_(seed) {
  check(dataset_size > 0, "a data set has samples");
  order_.resize(static_cast<std::size_t>(dataset_size));
}

std::span<const std::int64_t> EpochOrder::operator()(std::int64_t epoch) {
  check(epoch >= 0, "an epoch is not negative");
  if (epoch == epoch_) return order_;
  const Philox draws(seed_, PhiloxStream::data_order, static_cast<std::uint64_t>(epoch));
  std::iota(order_.begin(), order_.end(), std::int64_t{0});
  for (std::size_t last = order_.size() - 1; last > 0; --last) {
    std::swap(order_[last], order_[draws.below(last, last + 1)]);
  }
  epoch_ = epoch;
  return order_;
}

RankBatch next_batch(EpochOrder& order, const DataPosition& position, const BatchLayout& layout,
                     std::int64_t rank) {
  const std::int64_t size = order.dataset_size();
  check(position.consumed >= 0 && position.consumed < size, "a position is within its epoch");
  RankBatch batch;
  batch.total = std::min(layout.samples_per_step(), size - position.consumed);
  batch.next = position.consumed + batch.total == size
                   ? DataPosition{position.epoch + 1, 0}
                   : DataPosition{position.epoch, position.consumed + batch.total};

  auto samples = order(position.epoch)
                     .subspan(static_cast<std::size_t>(position.consumed),
                              static_cast<std::size_t>(batch.total));
  for (std::int64_t micro = 0; micro < layout.accumulate; ++micro) {
    const std::int64_t count = std::min(layout.world_size * layout.batch_size, std::ssize(samples));
    const IndexRange share = share_of_rank(count, layout.world_size, rank);
    batch.micro_batches.emplace_back(samples.begin() + share.begin, samples.begin() + share.end);
    samples = samples.subspan(static_cast<std::size_t>(count));
  }
  return batch;
}

std::int64_t steps_per_epoch(std::int64_t dataset_size, const BatchLayout& layout) {
  const std::int64_t step = layout.samples_per_step();
  return (dataset_size + step - 1) / step;
}

IndexRange share_of_rank(std::int64_t size, std::int64_t world_size, std::int64_t rank) {
  check(rank >= 0 && rank < world_size, "a rank is within its world");
  return {size * rank / world_size, size * (rank + 1) / world_size};
}

}  // namespace thinwire
