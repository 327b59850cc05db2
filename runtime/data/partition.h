// Which samples each rank learns. Where ranks have different data, as in federated learning, their
// gradients differ, which makes it harder to compress them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "runtime/data/dataset.h"
#include "runtime/data/sampler.h"

namespace thinwire {

// Any rank may get any sample, and gets other ones in each epoch (`next_batch` in sampler.h).
struct Iid {};
// Each rank learns samples of a few classes only, the same ones in every epoch.
struct ByLabel {
  // How many classes each rank has. None: as few as give every class a rank.
  std::optional<std::int64_t> classes = std::nullopt;
};
using PartitionOptions = std::variant<Iid, ByLabel>;

// From "iid", "by_label" or "by_label:classes=N", N >= 1. Throws `UsageError`.
PartitionOptions parse_partition(const std::string& text);

// One rank's part of data that are dealt by label, as a function of labels, world size and rank.
//
// Rank r has the N classes (r N + i) mod C, i < N. The samples of a class are cut, in the data
// set's order, into contiguous shares that differ by at most one, in the order of the ranks that
// have the class. So every sample has one owner, and an epoch is every sample once, as without a
// partition.
//
// All ranks reach the end of their samples together. Where `next_batch` of sampler.h takes the
// samples [a, b) of an epoch of D samples, a rank that owns s of the D takes [s a / D, s b / D),
// rounded down, of its own samples in the epoch's order. If all ranks own equally many, each gets
// the batch size; otherwise a rank that owns more has larger batches.
class LabelPartition {
 public:
  // Throws `UsageError` for data without labels, for more classes than the data have, and for so
  // few that some class would have no rank.
  LabelPartition(const Dataset& data, const ByLabel& options, std::int64_t world_size,
                 std::int64_t rank);

  // "by_label:classes=5 of 4 ranks". Partitions of the same data are equal if their names are.
  const std::string& name() const { return name_; }
  // Like the function of that name; `order` is of the same data set, `layout` of the same world.
  RankBatch next_batch(EpochOrder& order, const DataPosition& position, const BatchLayout& layout);

 private:
  std::string name_;
  std::int64_t rank_;
  std::vector<std::int64_t> owners_;  // of each sample: a rank
  std::vector<std::int64_t> sizes_;   // of each rank: samples that it owns
  std::int64_t epoch_ = -1;           // that `own_` is of
  std::vector<std::int64_t> own_;     // this rank's samples in the epoch's order
};

}  // namespace thinwire
