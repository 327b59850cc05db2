#include "runtime/data/sharded_sampler.h"

#include <torch/torch.h>

#include "collectives/base/error.h"

namespace thinwire {

ShardedSampler::ShardedSampler(std::int64_t size, std::uint64_t seed, int rank, int ranks)
    : state_(std::make_shared<State>(State{EpochOrder(size, seed), {}, false})),
      rank_(rank),
      ranks_(ranks) {
  check(ranks > 0 && rank >= 0 && rank < ranks, "a rank of the group");
}

void ShardedSampler::reset(std::optional<std::size_t> new_size) {
  if (new_size && static_cast<std::int64_t>(*new_size) != state_->order.dataset_size()) {
    throw UsageError(
        "ShardedSampler was reset to another size; make one for each data set, of its size");
  }
  state_->ended = false;
}

std::optional<std::vector<std::size_t>> ShardedSampler::next(std::size_t batch_size) {
  if (state_->ended) return std::nullopt;
  const RankBatch batch = next_batch(
      state_->order, state_->position,
      {.world_size = ranks_, .batch_size = static_cast<std::int64_t>(batch_size)}, rank_);
  state_->ended = batch.next.epoch != state_->position.epoch;
  state_->position = batch.next;
  const auto& mine = batch.micro_batches.front();
  if (mine.empty()) return std::nullopt;
  return std::vector<std::size_t>(mine.begin(), mine.end());
}

void ShardedSampler::save(torch::serialize::OutputArchive& archive) const {
  archive.write("position",
                torch::tensor({state_->position.epoch, state_->position.consumed}, torch::kLong),
                /*is_buffer=*/true);
}

void ShardedSampler::load(torch::serialize::InputArchive& archive) {
  at::Tensor position = torch::empty({2}, torch::kLong);
  archive.read("position", position, /*is_buffer=*/true);
  state_->position = {position[0].item<std::int64_t>(), position[1].item<std::int64_t>()};
}

void ShardedSampler::visit(StateVisitor& visitor) {
  visitor.counter("epoch", state_->position.epoch);
  visitor.counter("consumed_samples", state_->position.consumed);
}

}  // namespace thinwire
