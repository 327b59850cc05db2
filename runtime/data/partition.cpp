#include "runtime/data/partition.h"

#include <fmt/format.h>

#include <algorithm>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"

namespace thinwire {
namespace {

// The fewest classes per rank with which each of `classes` is somebody's.
std::int64_t fewest_classes(std::int64_t classes, std::int64_t world_size) {
  return (classes + world_size - 1) / world_size;
}

std::int64_t classes_of_a_rank(const Dataset& data, const ByLabel& options,
                               std::int64_t world_size) {
  if (data.labels().empty()) {
    throw UsageError(
        "--partition by_label needs samples with a label each, and these data have none; use "
        "--partition iid, or data such as fashion-mnist");
  }
  const std::int64_t fewest = fewest_classes(data.classes(), world_size);
  const std::int64_t chosen = options.classes.value_or(fewest);
  if (chosen < fewest || chosen > data.classes()) {
    throw UsageError(fmt::format(
        "--partition by_label: {} ranks of {} classes do not suit data of {}: each class must be "
        "some rank's; give classes={} to {}",
        world_size, chosen, data.classes(), fewest, data.classes()));
  }
  return chosen;
}

}  // namespace

PartitionOptions parse_partition(const std::string& text) {
  ChoiceReader spec("--partition", text);
  if (spec.name() == "iid") {
    spec.done();
    return Iid{};
  }
  if (spec.name() != "by_label") spec.unknown_name({"iid", "by_label"});
  // 0 stands for a key that is not there: it cannot be given.
  const std::int64_t classes = spec.integer("classes", 0, 1, 256);
  spec.done();
  return classes == 0 ? ByLabel{} : ByLabel{classes};
}

LabelPartition::LabelPartition(const Dataset& data, const ByLabel& options, std::int64_t world_size,
                               std::int64_t rank)
    : rank_(rank), sizes_(static_cast<std::size_t>(world_size), 0) {
  check(rank >= 0 && rank < world_size, "a rank is within its world");
  const std::int64_t per_rank = classes_of_a_rank(data, options, world_size);
  name_ = fmt::format("by_label:classes={} of {} ranks", per_rank, world_size);

  const auto labels = data.labels();
  std::vector<std::vector<std::int64_t>> samples(static_cast<std::size_t>(data.classes()));
  for (std::int64_t i = 0; i < std::ssize(labels); ++i) {
    samples[labels[static_cast<std::size_t>(i)]].push_back(i);
  }
  std::vector<std::vector<std::int64_t>> ranks(samples.size());  // that have a class
  for (std::int64_t slot = 0; slot < world_size * per_rank; ++slot) {
    ranks[static_cast<std::size_t>(slot % data.classes())].push_back(slot / per_rank);
  }
  owners_.resize(labels.size());
  for (std::size_t label = 0; label < samples.size(); ++label) {
    const auto sharers = std::ssize(ranks[label]);
    for (std::int64_t i = 0; i < sharers; ++i) {
      const std::int64_t owner = ranks[label][static_cast<std::size_t>(i)];
      const IndexRange share = share_of_rank(std::ssize(samples[label]), sharers, i);
      sizes_[static_cast<std::size_t>(owner)] += share.size();
      for (std::int64_t j = share.begin; j < share.end; ++j) {
        owners_[static_cast<std::size_t>(samples[label][static_cast<std::size_t>(j)])] = owner;
      }
    }
  }
}

RankBatch LabelPartition::next_batch(EpochOrder& order, const DataPosition& position,
                                     const BatchLayout& layout) {
  check_equal(order.dataset_size(), std::ssize(owners_), "samples of the order");
  check_equal(layout.world_size, std::ssize(sizes_), "ranks of the layout");
  // Checks the position, and says where the next step begins.
  RankBatch batch = thinwire::next_batch(order, position, layout, rank_);
  if (epoch_ != position.epoch) {
    own_.clear();
    for (const std::int64_t sample : order(position.epoch)) {
      if (owners_[static_cast<std::size_t>(sample)] == rank_) own_.push_back(sample);
    }
    epoch_ = position.epoch;
  }

  const std::int64_t size = order.dataset_size();
  const auto place = [&](std::int64_t owned, std::int64_t consumed) {
    return owned * consumed / size;
  };
  const std::int64_t begin = position.consumed;
  const std::int64_t end = begin + batch.total;
  batch.total = 0;
  for (const std::int64_t owned : sizes_) batch.total += place(owned, end) - place(owned, begin);
  for (std::int64_t micro = 0; micro < layout.accumulate; ++micro) {
    const std::int64_t step = layout.world_size * layout.batch_size;
    const std::int64_t from = place(std::ssize(own_), std::min(begin + micro * step, end));
    const std::int64_t to = place(std::ssize(own_), std::min(begin + (micro + 1) * step, end));
    batch.micro_batches[static_cast<std::size_t>(micro)].assign(own_.begin() + from,
                                                                own_.begin() + to);
  }
  return batch;
}

}  // namespace thinwire
