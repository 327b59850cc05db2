// What must hold for every codec x feedback x exchange, through the real collective.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <mutex>

#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/coding.h"
#include "tests/compression/combinations.h"
#include "tests/compression/flat_state.h"
#include "tests/compression/support.h"
#include "tests/reference/reducer.h"
#include "tests/support/frozen.h"

namespace thinwire {
namespace {

using reference::PlainCodec;

using testing::combinations;
using testing::Flat;
using testing::largest;
using testing::make_bucket;
using testing::NamedOptions;
using testing::random_gradient;
using testing::Snapshot;
using testing::Sum;

std::vector<std::vector<std::int64_t>> small_shapes() {
  return {{9, 7}, {5}, {0, 4}, {12, 11}, {}};
}

class EveryCombination : public ::testing::TestWithParam<int> {};

// sum of estimates + mean of e + owners' e = sum of mean gradients, with error feedback and with
// EControl; of EControl also sum of h + e = sum of g on each rank, and that the mean of h is what
// owners or, with all-gather, all ranks have as such. Through dense steps, frozen and absent
// slices, rollbacks.
void conserve(const NamedOptions& named, int size,
              std::unique_ptr<GradientReducer> (*make)(const CompressionOptions&)) {
  SCOPED_TRACE(named.name);
  const FeedbackKind feedback = named.options.feedback.kind;
  Sum residuals;
  Sum gradients;
  Sum trackers;
  Sum mean_trackers;
  std::mutex mutex;
  at::Tensor estimates;
  at::Tensor estimate_state;
  run_ranks(size, [&](auto communicator) {
    const int rank = communicator->rank();
    Bucket bucket = make_bucket(small_shapes(), at::kDouble);
    const auto reducer = make(named.options);
    reducer->prepare(bucket, rank, size);
    at::Tensor sent = at::zeros({bucket.numel()}, at::kDouble);
    at::Tensor own = at::zeros({bucket.numel()}, at::kDouble);
    at::Tensor tracked = at::zeros({bucket.numel()}, at::kDouble);
    for (int step = 0; step < 500; ++step) {
      at::Tensor gradient = random_gradient(bucket, step, rank);
      const Slice& last = bucket.slices[3];
      // A matrix of zeros for a while, and one of denormals: blocks that say zero.
      if (step < 60) gradient.narrow(0, last.offset, last.numel).zero_();
      if (step < 30) gradient.narrow(0, bucket.slices[0].offset, 40).fill_(5e-324);
      resting::set_frozen(bucket, 3, step >= 200 && step < 230);
      resting::set_frozen(bucket, 1, step >= 220 && step < 225);
      std::vector<bool> absent;
      for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
        Slice& slice = bucket.slices[i];
        slice.absent = false;
        absent.push_back(step >= 300 && step < 400 && (step * 7 + static_cast<int>(i)) % 5 < 2);
        if (bucket.layout.rests(i) || absent[i])
          gradient.narrow(0, slice.offset, slice.numel).zero_();
      }
      bucket.gradient.copy_(gradient);
      const bool poisoned = step % 101 == 7;
      if (poisoned && rank == step % size) {
        bucket.gradient[3] = std::numeric_limits<double>::quiet_NaN();
      }
      const bool dense = step % 97 == 96;
      reducer->stage(bucket, *communicator,
                     {.step = step,
                      .seed = 1,
                      .transmission = dense ? Transmission::dense : Transmission::compressed});
      reducer->settle(*communicator);
      ASSERT_EQ(reducer->non_finite(bucket).has_value(), poisoned);
      if (poisoned) {
        reducer->rollback(bucket);
        continue;
      }
      for (std::size_t i = 0; i < absent.size(); ++i) bucket.slices[i].absent = absent[i];
      reducer->commit(bucket);
      own.add_(gradient);
      sent.add_(bucket.gradient);
      if (feedback != FeedbackKind::econtrol) continue;
      Flat state(bucket, *reducer);
      for (const Slice& slice : bucket.slices) {
        if (resting::rests(bucket, slice)) continue;
        tracked.narrow(0, slice.offset, slice.numel)
            .add_(state["tracker"].narrow(0, slice.offset, slice.numel));
      }
    }
    Flat state(bucket, *reducer);
    if (feedback == FeedbackKind::econtrol) {
      EXPECT_LT(largest(tracked + state["residual"] - own), 1e-9);
    }
    residuals.add(state["residual"] / size + state["owner_residual"]);
    gradients.add(own / size);
    trackers.add(state["tracker"] / size);
    mean_trackers.add(state["mean_tracker"]);
    const std::lock_guard lock(mutex);
    if (estimates.defined()) {
      EXPECT_TRUE(testing::same_bits(estimates, sent)) << "ranks decoded different estimates";
      EXPECT_TRUE(testing::same_bits(estimate_state, state["estimate"]));
    }
    estimates = sent;
    estimate_state = state["estimate"];
  });
  if (feedback == FeedbackKind::none) return;
  EXPECT_LT(largest(estimates + residuals.total() - gradients.total()), 1e-9);
  // Not by sending nothing; but one bit's errors may be as large as the values.
  const auto* quantize = std::get_if<Quantize>(&named.options.codec);
  if (quantize == nullptr || quantize->bits > 1) {
    EXPECT_LT(largest(residuals.total()), largest(estimates));
  }
  if (feedback != FeedbackKind::econtrol) return;
  const bool gathers = named.options.exchange == ExchangeKind::all_gather;
  const at::Tensor& mean = gathers ? estimate_state : mean_trackers.total();
  EXPECT_LT(largest(mean - trackers.total()), 1e-9);
  EXPECT_GT(largest(trackers.total()), 0.1);
}

TEST_P(EveryCombination, ConservesWhatIsNotSentIn500Steps) {
  for (const auto& named : combinations(static_cast<std::size_t>(GetParam()))) {
    conserve(named, GetParam(), reference::make_reducer);
  }
}

TEST_P(EveryCombination, ConservesWhatIsNotSentIn500StepsThroughTheKernels) {
  for (const auto& named : combinations(static_cast<std::size_t>(GetParam()) + 1)) {
    conserve(named, GetParam(),
             [](const CompressionOptions& options) { return make_reducer(options); });
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, EveryCombination, ::testing::Values(1, 2, 3, 4, 7));

// Without feedback every step stands alone: all-gather is the mean of the ranks' C(g).
TEST(Combination, WithoutFeedbackAllGatherIsTheMeanOfCodes) {
  const TopK options{0.1, 64};
  const PlainCodec codec(options);
  run_ranks(3, [&](auto communicator) {
    Bucket bucket = make_bucket(small_shapes());
    const auto reducer =
        reference::make_reducer({options, {FeedbackKind::none}, ExchangeKind::all_gather});
    reducer->prepare(bucket, communicator->rank(), 3);
    for (int step = 0; step < 20; ++step) {
      bucket.gradient.copy_(random_gradient(bucket, step, communicator->rank()));
      reducer->stage(bucket, *communicator, {.step = step, .seed = 1});
      reducer->settle(*communicator);
      reducer->commit(bucket);
      for (const auto& slice : bucket.slices) {
        at::Tensor mean = at::zeros({slice.numel});
        for (int rank = 0; rank < 3; ++rank) {
          const at::Tensor g =
              random_gradient(bucket, step, rank).narrow(0, slice.offset, slice.numel);
          mean += slice.is_vector() ? g : testing::coded(codec, g);
        }
        EXPECT_TRUE(bucket.gradient.narrow(0, slice.offset, slice.numel).equal(mean / 3));
      }
    }
  });
}

// NaN or Inf on one rank in any slice: every rank says so, and a rollback restores every byte.
TEST(Combination, ANonFiniteValueOnOneRankRollsEverythingBack) {
  const double bad_values[] = {std::numeric_limits<double>::quiet_NaN(),
                               std::numeric_limits<double>::infinity(),
                               -std::numeric_limits<double>::infinity()};
  for (const std::size_t which : {0, 1}) {
    for (const auto& [name, options] : combinations(which)) {
      SCOPED_TRACE(name);
      run_ranks(3, [&, &options = options](auto communicator) {
        Bucket bucket = make_bucket(small_shapes());
        const auto reducer = reference::make_reducer(options);
        reducer->prepare(bucket, communicator->rank(), 3);
        std::int64_t step = 0;
        const auto run = [&](double bad, std::size_t slice, Transmission transmission) {
          bucket.gradient.copy_(random_gradient(bucket, step, communicator->rank()));
          if (bad != 0 && communicator->rank() == static_cast<int>(slice % 3)) {
            bucket.gradient[bucket.slices[slice].end() - 1] = bad;
          }
          reducer->stage(bucket, *communicator,
                         {.step = step++, .seed = 1, .transmission = transmission});
          reducer->settle(*communicator);
          return reducer->non_finite(bucket);
        };
        for (int good = 0; good < 2; ++good) {
          ASSERT_FALSE(run(0, 0, Transmission::compressed));
          reducer->commit(bucket);
        }
        for (const auto transmission : {Transmission::compressed, Transmission::dense}) {
          for (const double bad : bad_values) {
            for (std::size_t slice = 0; slice < bucket.slices.size(); ++slice) {
              if (bucket.slices[slice].numel == 0) continue;
              Snapshot before;
              reducer->visit(bucket, before);
              EXPECT_EQ(run(bad, slice, transmission), bucket.slices[slice].name) << bad;
              reducer->rollback(bucket);
              Snapshot after;
              reducer->visit(bucket, after);
              EXPECT_TRUE(before == after);
            }
          }
        }
        // Of several the first slice is named, whoever's it is.
        bucket.gradient.copy_(random_gradient(bucket, step, communicator->rank()));
        const std::size_t bad_slice[] = {3, 0, 4};
        const Slice& mine = bucket.slices[bad_slice[communicator->rank()]];
        bucket.gradient[mine.offset] = bad_values[0];
        reducer->stage(bucket, *communicator, {.step = step++, .seed = 1});
        reducer->settle(*communicator);
        EXPECT_EQ(reducer->non_finite(bucket), "p0");
        reducer->rollback(bucket);
        // Training goes on.
        ASSERT_FALSE(run(0, 0, Transmission::compressed));
        reducer->commit(bucket);
        EXPECT_TRUE(bucket.gradient.isfinite().all().item<bool>());
      });
    }
  }
}

// Finite on every rank, but not their sum: seen in every coding, unless the sum is never formed, as
// where fp16 clamps. Sums far below the largest number are fine, unless a scale is a mean of
// squares.
TEST(Combination, SumsThatOverflowAreSeen) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  const std::pair<const char*, std::unique_ptr<GradientReducer> (*)(const CompressionOptions&)>
      makers[] = {{"kernels", [](const CompressionOptions& o) { return make_reducer(o); }},
                  {"plain", reference::make_reducer}};
  for (const std::size_t which : {0, 1}) {
    for (auto& [name, options] : combinations(which)) {
      options.policy.min_dimensions = 0;  // no slice goes uncompressed and shows it
      const Sign* sign = std::get_if<Sign>(&options.codec);
      const bool squares = sign != nullptr && sign->scale == SignScale::rms;
      const Cast* cast = std::get_if<Cast>(&options.codec);
      const bool clamps = cast != nullptr && cast->half == Half::fp16;
      for (const auto& [arithmetic, make] : makers) {
        SCOPED_TRACE(name + ", " + arithmetic);
        run_ranks(3, [&, &options = options, &make = make](auto communicator) {
          Bucket bucket = make_bucket(small_shapes());
          const auto reducer = make(options);
          reducer->prepare(bucket, communicator->rank(), 3);
          const auto estimate_is_finite = [&](double value, std::int64_t step) {
            bucket.gradient.fill_(value);
            reducer->stage(bucket, *communicator, {.step = step, .seed = 1});
            reducer->settle(*communicator);
            if (reducer->non_finite(bucket)) {
              reducer->rollback(bucket);
              return false;
            }
            reducer->commit(bucket);
            EXPECT_TRUE(bucket.gradient.isfinite().all().item<bool>());
            return true;
          };
          EXPECT_EQ(estimate_is_finite(0.9 * kLargest, 0), clamps);
          EXPECT_TRUE(estimate_is_finite(squares ? 1e15 : kLargest / 4096, 1));
        });
      }
    }
  }
}

// Fills the state of a reducer from a snapshot of another one.
class Restore final : public StateVisitor {
 public:
  explicit Restore(const Snapshot& from) : from_(from) {}
  void tensor(const StateEntry& entry) override {
    for (const auto& [saved, copy] : from_.entries) {
      if (saved.name != entry.name || saved.begin != entry.begin) continue;
      at::Tensor(entry.tensor).copy_(copy);
      ++filled;
    }
  }
  void counter(const std::string&, std::int64_t&) override {}
  std::size_t filled = 0;

 private:
  const Snapshot& from_;
};

TEST(Combination, AResumedRunIsTheUninterruptedOne) {
  for (const std::size_t which : {0, 1}) {
    for (const auto& [name, options] : combinations(which)) {
      SCOPED_TRACE(name);
      run_ranks(3, [&, &options = options](auto communicator) {
        Bucket bucket = make_bucket(small_shapes());
        Bucket resumed = make_bucket(small_shapes());
        const auto step = [&](GradientReducer& reducer, Bucket& into, int number) {
          into.gradient.copy_(random_gradient(into, number, communicator->rank()));
          reducer.stage(into, *communicator,
                        {.step = number,
                         .seed = 1,
                         .transmission = number == 2 || number == 14 ? Transmission::dense
                                                                     : Transmission::compressed});
          reducer.settle(*communicator);
          ASSERT_FALSE(reducer.non_finite(into));
          reducer.commit(into);
        };
        const auto first = reference::make_reducer(options);
        first->prepare(bucket, communicator->rank(), 3);
        for (int i = 0; i < 10; ++i) step(*first, bucket, i);
        Snapshot saved;
        first->visit(bucket, saved);
        const auto second = reference::make_reducer(options);
        second->prepare(resumed, communicator->rank(), 3);
        Restore restore(saved);
        second->visit(resumed, restore);
        EXPECT_EQ(restore.filled, saved.entries.size());
        EXPECT_EQ(saved.entries.empty(), options.feedback.kind == FeedbackKind::none);
        for (int i = 10; i < 20; ++i) {
          step(*first, bucket, i);
          step(*second, resumed, i);
          ASSERT_TRUE(testing::same_bits(bucket.gradient, resumed.gradient)) << "step " << i;
        }
        Snapshot states[2];
        first->visit(bucket, states[0]);
        second->visit(resumed, states[1]);
        EXPECT_TRUE(states[0] == states[1]);
      });
    }
  }
}

// Who has which gradient does not matter, but for the order of sums, and for random draws and a
// measured eta, which are a rank's own.
TEST(Combination, PermutedRanksHaveTheSameEstimates) {
  constexpr int kRanks = 3;
  for (const std::size_t which : {0, 1, 3}) {
    for (auto& [name, options] : combinations(which)) {
      const auto* quantize = std::get_if<Quantize>(&options.codec);
      if (options.feedback.kind == FeedbackKind::econtrol) options.feedback.eta = 0.1;
      if (quantize != nullptr && quantize->rounding == Rounding::stochastic) continue;
      SCOPED_TRACE(name);
      std::vector<at::Tensor> estimates[kRanks];
      for (int turn = 0; turn < kRanks; ++turn) {
        run_ranks(kRanks, [&, &options = options](auto communicator) {
          Bucket bucket = make_bucket(small_shapes(), at::kDouble);
          const auto reducer = make_reducer(options);
          reducer->prepare(bucket, communicator->rank(), kRanks);
          for (int step = 0; step < 8; ++step) {
            const int whose = (communicator->rank() + turn) % kRanks;
            bucket.gradient.copy_(random_gradient(bucket, step, whose));
            reducer->stage(bucket, *communicator, {.step = step, .seed = 1});
            reducer->settle(*communicator);
            reducer->commit(bucket);
            if (communicator->rank() == 0) estimates[turn].push_back(bucket.gradient.clone());
          }
        });
      }
      for (int turn = 1; turn < kRanks; ++turn) {
        for (std::size_t step = 0; step < estimates[0].size(); ++step) {
          EXPECT_LT(largest(estimates[turn][step] - estimates[0][step]), 1e-12) << "step " << step;
        }
      }
    }
  }
}

// Codings that cannot say zero: rows that are always zero must not make residuals grow.
TEST(Combination, ResidualsStayBoundedOnAHalfDeadEmbedding) {
  for (const std::size_t which : {0, 1}) {
    for (const auto& [name, options] : combinations(which)) {
      if (options.feedback.kind == FeedbackKind::none) continue;
      SCOPED_TRACE(name);
      run_ranks(2, [&, &options = options](auto communicator) {
        Bucket bucket = make_bucket({{32, 8}});
        const auto reducer = reference::make_reducer(options);
        reducer->prepare(bucket, communicator->rank(), 2);
        double early = 0;
        double late = 0;
        for (int step = 0; step < 1500; ++step) {
          bucket.gradient.copy_(random_gradient(bucket, step % 257, communicator->rank()));
          bucket.gradient.view({32, 8}).slice(0, 0, 32, 2).zero_();
          reducer->stage(bucket, *communicator, {.step = step, .seed = 1});
          reducer->settle(*communicator);
          reducer->commit(bucket);
          if (step % 50 != 49) continue;
          Flat state(bucket, *reducer);
          double& size = step < 750 ? early : late;
          size = std::max({size, largest(state["residual"]), largest(state["owner_residual"])});
        }
        EXPECT_LT(late, 2 * early);
        EXPECT_LT(late, 100);
      });
    }
  }
}

// The weight of the error is a tenth of the contraction of the messages, smoothed.
TEST(Combination, EtaIsMeasuredFromCommittedMessages) {
  run_ranks(1, [](auto communicator) {
    Bucket bucket = make_bucket({{8, 8}, {4}}, at::kDouble);
    const auto reducer = reference::make_reducer({Sign{32}, {FeedbackKind::econtrol}});
    reducer->prepare(bucket, 0, 1);
    const auto eta = [&] {
      Snapshot state;
      reducer->visit(bucket, state);
      std::map<std::string, double> etas;
      for (const auto& [entry, copy] : state.entries) {
        if (entry.name.starts_with("eta/")) etas[entry.name] = largest(copy);
      }
      return etas;
    };
    EXPECT_EQ(eta(), (std::map<std::string, double>{{"eta/p0", 0}, {"eta/p1", 0}}));
    // Half of the values are 1, half 3: mean 2, so |m|^2 is 5 and |m - d|^2 is 1 per value.
    const auto step = [&] {
      bucket.gradient.fill_(1);
      bucket.gradient.slice(0, 0, 64, 2).fill_(-3);
      reducer->stage(bucket, *communicator, {.step = 0, .seed = 1});
      reducer->settle(*communicator);
    };
    step();
    reducer->rollback(bucket);
    EXPECT_EQ(eta().at("eta/p0"), 0);
    step();
    reducer->commit(bucket);
    EXPECT_NEAR(eta().at("eta/p0"), 0.1 * 0.8, 1e-15);
    EXPECT_EQ(eta().at("eta/p1"), 0);
    // Then m = .08 e + g - h with e = g - d = +-1, h = d: all of size 1.08, so C(m) is m.
    step();
    reducer->commit(bucket);
    EXPECT_NEAR(eta().at("eta/p0"), 0.9 * 0.08 + 0.1 * 0.1, 1e-15);
  });
}

}  // namespace
}  // namespace thinwire
