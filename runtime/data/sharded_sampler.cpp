#include "runtime/data/sharded_sampler.h"

#include <torch/torch.h>

#include "runtime/base/error.h"

namespace thinwire {

ShardedSampler::ShardedSampler(std::int64_t size, std::uint64_t seed, int rank, int ranks)
    : order_(size, seed), rank_(rank), ranks_(ranks) {
  check(ranks > 0 && rank >= 0 && rank < ranks, "a rank of the group");
}

void ShardedSampler::reset(std::optional<std::size_t> new_size) {
  if (new_size && static_cast<std::int64_t>(*new_size) != order_.dataset_size()) {
    throw UsageError(
        "ShardedSampler was reset to another size; make one for each data set, of its size");
  }
  ended_ = false;
}

std::optional<std::vector<std::size_t>> ShardedSampler::next(std::size_t batch_size) {
  if (ended_) return std::nullopt;
  const RankBatch batch = next_batch(
      order_, position_,
      {.world_size = ranks_, .batch_size = static_cast<std::int64_t>(batch_size)}, rank_);
  ended_ = batch.next.epoch != position_.epoch;
  position_ = batch.next;
  const auto& mine = batch.micro_batches.front();
  if (mine.empty()) return std::nullopt;
  return std::vector<std::size_t>(mine.begin(), mine.end());
}

void ShardedSampler::save(torch::serialize::OutputArchive& archive) const {
  archive.write("position", torch::tensor({position_.epoch, position_.consumed}, torch::kLong),
                /*is_buffer=*/true);
}

void ShardedSampler::load(torch::serialize::InputArchive& archive) {
  at::Tensor position = torch::empty({2}, torch::kLong);
  archive.read("position", position, /*is_buffer=*/true);
  position_ = {position[0].item<std::int64_t>(), position[1].item<std::int64_t>()};
}

void ShardedSampler::visit(StateVisitor& visitor) {
  visitor.counter("epoch", position_.epoch);
  visitor.counter("consumed_samples", position_.consumed);
}

}  // namespace thinwire
