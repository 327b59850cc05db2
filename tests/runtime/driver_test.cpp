// A StepTransaction driven by something that is not autograd: buckets come in another order on each
// rank, some steps are silent, ranks abandon steps and have bad values, all at random.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>

#include "collectives/compression/options.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "runtime/step/transaction.h"
#include "tests/compression/combinations.h"
#include "tests/compression/support.h"
#include "tests/support/frozen.h"

namespace thinwire {
namespace {

using testing::NamedOptions;
using testing::Snapshot;

constexpr std::int64_t kSteps = 1000;
constexpr int kRanks = 3;

// What happens in a step, the same whoever asks.
class Plan {
 public:
  bool silent(std::int64_t step) const { return chance(0, step, 0) < 0.15; }
  bool dense(std::int64_t step) const { return chance(1, step, 0) < 0.05; }
  bool abandons(std::int64_t step, int rank) const { return chance(2, step, rank) < 0.02; }
  bool is_bad(std::int64_t step, int rank) const { return chance(3, step, rank) < 0.02; }
  bool uses(std::int64_t step, int rank, std::size_t slice) const {
    return chance(4 + static_cast<int>(slice), step, rank) < 0.6;
  }
  std::vector<std::size_t> order(std::int64_t step, int rank, std::size_t count) const {
    std::vector<std::pair<double, std::size_t>> keys;
    for (std::size_t i = 0; i < count; ++i) {
      keys.emplace_back(chance(100 + static_cast<int>(i), step, rank), i);
    }
    std::sort(keys.begin(), keys.end());
    std::vector<std::size_t> order;
    for (const auto& key : keys) order.push_back(key.second);
    return order;
  }

 private:
  static double chance(int what, std::int64_t step, int rank) {
    return Philox(11, PhiloxStream::synthetic_data, static_cast<std::uint64_t>(what))
        .uniform(static_cast<std::uint64_t>(step * 64 + rank));
  }
};

std::vector<Bucket> make_buckets() {
  std::vector<Bucket> buckets;
  const std::vector<std::vector<std::vector<std::int64_t>>> shapes = {
      {{9, 7}, {5}}, {{12, 11}, {8, 8}}, {{6, 10}, {}, {40, 3}}};
  for (const auto& of_bucket : shapes) {
    buckets.push_back(
        testing::make_bucket(of_bucket, at::kDouble, static_cast<int>(buckets.size())));
    for (Slice& slice : buckets.back().slices) {
      slice.name = fmt::format("b{}.{}", buckets.size() - 1, slice.name);
    }
  }
  return buckets;
}

// Fills in what a Snapshot holds.
struct Restore final : StateVisitor {
  explicit Restore(const Snapshot& snapshot) : from(snapshot) {}
  void tensor(const StateEntry& entry) override {
    for (const auto& [known, value] : from.entries) {
      if (known.name == entry.name && known.begin == entry.begin) entry.tensor.copy_(value);
    }
  }
  void counter(const std::string&, std::int64_t&) override {}
  const Snapshot& from;
};

// One rank's run.
struct History {
  Snapshot state;
  std::vector<at::Tensor> estimates;  // per bucket: their sum
  std::vector<at::Tensor> owed;       // per bucket: the sum of what this rank handed over
  // What the outer loop has of silent steps since the ranks last agreed.
  std::vector<at::Tensor> pending;
  bool failed_silently[kRanks] = {};
};

class Driver {
 public:
  Driver(const CompressionOptions& options, Communicator& ranks)
      : ranks_(ranks),
        buckets_(make_buckets()),
        reduction_(make_reduction(options)),
        transaction_(buckets_, *reduction_.reducer, ranks, {.before = reduction_.before.get()}) {}

  void go(History& run, std::int64_t from, std::int64_t to) {
    if (run.estimates.empty()) {
      for (const Bucket& bucket : buckets_) {
        for (auto* list : {&run.estimates, &run.owed, &run.pending}) {
          list->push_back(at::zeros_like(bucket.gradient));
        }
      }
    } else if (from > 0 && is_fresh_) {
      Restore restore(run.state);
      visit(restore);
    }
    for (std::int64_t step = from; step < to; ++step) {
      take_step(run, step);
      if (::testing::Test::HasFatalFailure()) return;
    }
    is_fresh_ = false;
    run.state = {};
    visit(run.state);
  }

 private:
  void visit(StateVisitor& visitor) {
    for (const Bucket& bucket : buckets_) {
      reduction_.reducer->visit(bucket, visitor);
      if (reduction_.before) reduction_.before->visit(bucket, visitor);
    }
  }

  void take_step(History& run, std::int64_t step) {
    const bool silent = plan_.silent(step);
    transaction_.set_step({.step = step,
                           .seed = 5,
                           .transmission = silent              ? Transmission::silent
                                           : plan_.dense(step) ? Transmission::dense
                                                               : Transmission::compressed});
    transaction_.begin({});
    const std::vector<at::Tensor> quantities = hand_over(run, step, silent);
    const bool abandons = plan_.abandons(step, ranks_.rank());
    StepClosing closing;
    if (abandons) closing = {StepEnd::abandoned, "chance"};
    std::vector<at::Tensor> early;
    if (!silent && step % 3 == 0) {
      transaction_.settle(closing);
      for (std::size_t b = 0; b < buckets_.size(); ++b) {
        early.push_back(transaction_.estimate(b).gradient.clone());
      }
    }
    const Verdict verdict = early.empty() ? transaction_.finish(closing) : transaction_.finish();
    if (verdict.committed()) compare_with_early(early);
    if (silent) {
      after_silent_step(run, step, verdict);
    } else {
      after_step(run, step, verdict, quantities);
    }
  }

  // What was read before the verdict is what the commit has left.
  void compare_with_early(const std::vector<at::Tensor>& early) {
    for (std::size_t b = 0; b < early.size(); ++b) {
      for (const Slice& slice : buckets_[b].slices) {
        if (resting::rests(buckets_[b], slice)) continue;
        const auto part = [&](const at::Tensor& flat) {
          return flat.narrow(0, slice.offset, slice.numel);
        };
        ASSERT_TRUE(part(early[b]).equal(part(buckets_[b].gradient))) << slice.name;
      }
    }
  }

  // What each bucket's gradient was.
  std::vector<at::Tensor> hand_over(History& run, std::int64_t step, bool silent) {
    std::vector<at::Tensor> quantities(buckets_.size());
    for (const std::size_t b : plan_.order(step, ranks_.rank(), buckets_.size())) {
      Bucket& bucket = buckets_[b];
      at::Tensor quantity =
          testing::random_gradient(bucket, step * 3 + static_cast<std::int64_t>(b), ranks_.rank());
      if (!silent) quantity = quantity + run.pending[b];
      std::vector<bool> used;
      for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
        const Slice& slice = bucket.slices[i];
        // What silent steps have left must go.
        used.push_back(plan_.uses(step, ranks_.rank(), 10 * b + i) ||
                       run.pending[b].narrow(0, slice.offset, slice.numel).any().item<bool>());
        if (!used.back()) quantity.narrow(0, slice.offset, slice.numel).zero_();
      }
      quantities[b] = quantity.clone();
      if (b == 1 && plan_.is_bad(step, ranks_.rank())) {
        quantity[3] = std::numeric_limits<double>::quiet_NaN();
        used[0] = true;
      }
      bucket.gradient.copy_(quantity);
      transaction_.hand_over(b, used);
    }
    return quantities;
  }

  void after_silent_step(History& run, std::int64_t step, const Verdict& verdict) {
    for (int rank = 0; rank < kRanks; ++rank) {
      if (plan_.is_bad(step, rank) && !plan_.abandons(step, rank)) run.failed_silently[rank] = true;
    }
    const bool mine = plan_.is_bad(step, ranks_.rank()) || plan_.abandons(step, ranks_.rank());
    ASSERT_EQ(verdict.committed(), !mine) << step;
    if (!verdict.committed()) return;
    for (std::size_t b = 0; b < buckets_.size(); ++b) run.pending[b] += buckets_[b].gradient;
  }

  void after_step(History& run, std::int64_t step, const Verdict& verdict,
                  const std::vector<at::Tensor>& quantities) {
    bool bad = false, abandoned = false, reverted = false;
    for (int rank = 0; rank < kRanks; ++rank) {
      bad |= plan_.is_bad(step, rank);
      abandoned |= plan_.abandons(step, rank);
      reverted |= std::exchange(run.failed_silently[rank], false);
    }
    ASSERT_EQ(verdict.non_finite.has_value(), bad) << step;
    ASSERT_EQ(verdict.abandoned.has_value(), abandoned) << step;
    ASSERT_EQ(verdict.reverted.has_value(), reverted) << step;
    if (reverted) {
      for (at::Tensor& pending : run.pending) pending.zero_();
    }
    if (!verdict.committed()) return;
    for (std::size_t b = 0; b < buckets_.size(); ++b) {
      run.pending[b].zero_();
      run.owed[b] += quantities[b];
      run.estimates[b] += buckets_[b].gradient;
    }
  }

  Communicator& ranks_;
  const Plan plan_ = {};
  bool is_fresh_ = true;  // has taken no step: it goes on where another one was
  std::vector<Bucket> buckets_;
  Reduction reduction_;
  StepTransaction transaction_;
};

// The residuals of a bucket of all ranks, as they enter the mean.
at::Tensor residuals(const Bucket& bucket, const std::vector<History>& runs) {
  at::Tensor sum = at::zeros_like(bucket.gradient);
  for (const History& run : runs) {
    for (const auto& [entry, value] : run.state.entries) {
      const bool is_owner_s = entry.name.starts_with("owner_residual/");
      if (!is_owner_s && !entry.name.starts_with("residual/")) continue;
      for (const Slice& slice : bucket.slices) {
        if (!entry.name.ends_with("/" + slice.name)) continue;
        sum.narrow(0, slice.offset + entry.begin, value.numel())
            .add_(is_owner_s ? value.flatten() : value.flatten() / kRanks);
      }
    }
  }
  return sum;
}

void expect_same(const History& a, const History& b) {
  EXPECT_TRUE(a.state == b.state);
  for (std::size_t i = 0; i < a.estimates.size(); ++i) {
    EXPECT_TRUE(a.estimates[i].equal(b.estimates[i])) << "bucket " << i;
  }
}

std::vector<NamedOptions> every_kind() {
  std::vector<NamedOptions> all = testing::combinations(1);
  all.push_back({"econtrol with averages",
                 {TopK{0.1, 64}, {.kind = FeedbackKind::econtrol, .eta = 0.1, .momentum = 0.9}}});
  all.push_back({"powersgd", {PowerSgd{.matrix_approximation_rank = 2}}});
  all.push_back({"powersgd without feedback",
                 {PowerSgd{.matrix_approximation_rank = 1}, {.kind = FeedbackKind::none}}});
  return all;
}

TEST(Driver, ThousandStepsInAnyOrderLoseNothing) {
  for (const NamedOptions& named : every_kind()) {
    SCOPED_TRACE(named.name);
    std::vector<History> whole(kRanks), resumed(kRanks);
    run_ranks(kRanks, [&](auto ranks) {
      const auto rank = static_cast<std::size_t>(ranks->rank());
      Driver uninterrupted(named.options, *ranks);
      uninterrupted.go(whole[rank], 0, kSteps / 2);
      resumed[rank] = whole[rank];
      for (auto* list : {&resumed[rank].estimates, &resumed[rank].owed, &resumed[rank].pending}) {
        for (at::Tensor& tensor : *list) tensor = tensor.clone();
      }
      uninterrupted.go(whole[rank], kSteps / 2, kSteps);
      Driver(named.options, *ranks).go(resumed[rank], kSteps / 2, kSteps);
    });
    for (std::size_t rank = 0; rank < kRanks; ++rank) expect_same(whole[rank], resumed[rank]);
    const std::vector<Bucket> buckets = make_buckets();
    for (std::size_t b = 0; b < buckets.size(); ++b) {
      at::Tensor owed = at::zeros_like(whole[0].owed[b]);
      for (const History& run : whole) {
        EXPECT_TRUE(run.estimates[b].equal(whole[0].estimates[b])) << "replicas differ";
        owed += run.owed[b] / kRanks;
      }
      EXPECT_GT(whole[0].estimates[b].abs().max().item<double>(), 1);
      const auto kind = resolve(named.options).feedback.kind;
      const bool is_lossless = std::holds_alternative<Uncompressed>(named.options.codec);
      if (kind == FeedbackKind::none && !is_lossless) continue;
      if (named.options.feedback.momentum > 0) continue;  // what is owed are averages
      const at::Tensor lost = owed - whole[0].estimates[b] - residuals(buckets[b], whole);
      EXPECT_LT(lost.abs().max().item<double>(), 1e-8) << "bucket " << b;
    }
  }
}

}  // namespace
}  // namespace thinwire
