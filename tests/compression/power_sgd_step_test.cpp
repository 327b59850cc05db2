// A step of PowerSGD as a transaction, and buckets that overlap.
#include <gtest/gtest.h>

#include <limits>
#include <mutex>

#include "collectives/checked.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/metered.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/power_sgd_support.h"
#include "tests/reference/reducer.h"
#include "tests/support/frozen.h"

namespace thinwire {
namespace {

using testing::make_bucket;
using testing::Overwrite;
using testing::power_sgd;
using testing::random_gradient;
using testing::reduce;
using testing::slice_of;
using testing::Snapshot;
using testing::state_of;

const CompressionOptions kCold = {PowerSgd{.warm_start = false}};

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

// NaN or Inf on one rank in any slice: every rank says so, and a rollback restores every byte.
TEST(PowerSgdStep, ANonFiniteValueOnOneRankRollsEverythingBack) {
  const double bad_values[] = {std::numeric_limits<double>::quiet_NaN(),
                               std::numeric_limits<double>::infinity(),
                               -std::numeric_limits<double>::infinity()};
  for (const auto& options : {power_sgd(4), power_sgd(2, FeedbackKind::none), kCold}) {
    for (const auto transmission : {Transmission::compressed, Transmission::dense}) {
      run_ranks(3, [&](auto communicator) {
        Bucket bucket = make_bucket(testing::mixed_shapes());
        const auto reducer = make_reducer(options);
        reducer->prepare(bucket, communicator->rank(), 3);
        std::int64_t step = 0;
        const auto run = [&](double bad, std::size_t slice) {
          bucket.gradient.copy_(random_gradient(bucket, step, communicator->rank()));
          if (bad != 0 && communicator->rank() == static_cast<int>(slice % 3)) {
            bucket.gradient[bucket.slices[slice].end() - 1] = bad;
          }
          reducer->stage(bucket, *communicator,
                         {.step = step++, .seed = 1, .transmission = transmission});
          reducer->settle(*communicator);
          return reducer->non_finite(bucket);
        };
        ASSERT_FALSE(run(0, 0));
        reducer->commit(bucket);
        for (const double bad : bad_values) {
          for (std::size_t slice = 0; slice < bucket.slices.size(); ++slice) {
            if (bucket.slices[slice].numel == 0) continue;
            Snapshot before;
            reducer->visit(bucket, before);
            EXPECT_EQ(run(bad, slice), bucket.slices[slice].name) << bad;
            reducer->rollback(bucket);
            Snapshot after;
            reducer->visit(bucket, after);
            EXPECT_TRUE(before == after);
          }
        }
        // Training goes on.
        ASSERT_FALSE(run(0, 0));
        reducer->commit(bucket);
        EXPECT_TRUE(at::isfinite(bucket.gradient).all().item<bool>());
      });
    }
  }
}

// A step that is rolled back leaves no trace in the steps after it.
TEST(PowerSgdStep, GoesOnAfterARollbackAsIfNothingHadBeen) {
  run_ranks(2, [](auto communicator) {
    const int rank = communicator->rank();
    Bucket buckets[] = {make_bucket(testing::mixed_shapes()), make_bucket(testing::mixed_shapes())};
    std::unique_ptr<GradientReducer> reducers[2];
    for (int i = 0; i < 2; ++i) {
      reducers[i] = make_reducer(power_sgd(4));
      reducers[i]->prepare(buckets[i], rank, 2);
    }
    for (int step = 0; step < 6; ++step) {
      const StepContext context{.step = step, .seed = 1};
      if (step % 2 == 1) {  // for one of them only
        buckets[1].gradient.copy_(random_gradient(buckets[1], 100 + step, rank));
        if (rank == 0) buckets[1].gradient[3] = std::numeric_limits<double>::quiet_NaN();
        reducers[1]->stage(buckets[1], *communicator, context);
        reducers[1]->settle(*communicator);
        ASSERT_TRUE(reducers[1]->non_finite(buckets[1]));
        reducers[1]->rollback(buckets[1]);
        continue;
      }
      const at::Tensor gradient = random_gradient(buckets[0], step, rank);
      for (int i = 0; i < 2; ++i) {
        reduce(*reducers[i], buckets[i], *communicator, gradient, context);
      }
      EXPECT_TRUE(same_bits(buckets[0].gradient, buckets[1].gradient)) << "step " << step;
    }
  });
}

// A run that is saved and read back through the visitor goes on with the same bits.
TEST(PowerSgdStep, ResumesBitIdentically) {
  for (const auto& options : {power_sgd(2), kCold}) {
    run_ranks(2, [&](auto communicator) {
      const int rank = communicator->rank();
      const auto run = [&](Bucket& bucket, GradientReducer& reducer, int from, int to) {
        for (int step = from; step < to; ++step) {
          reduce(reducer, bucket, *communicator, random_gradient(bucket, step, rank),
                 {.step = step, .seed = 1});
        }
      };
      Bucket whole = make_bucket(testing::mixed_shapes());
      const auto uninterrupted = make_reducer(options);
      uninterrupted->prepare(whole, rank, 2);
      run(whole, *uninterrupted, 0, 5);
      Snapshot saved;
      uninterrupted->visit(whole, saved);
      run(whole, *uninterrupted, 5, 10);

      std::map<std::string, at::Tensor> values;
      for (const auto& [entry, copy] : saved.entries) values[entry.name] = copy;
      EXPECT_FALSE(values.empty());
      Bucket again = make_bucket(testing::mixed_shapes());
      const auto resumed = make_reducer(options);
      resumed->prepare(again, rank, 2);
      Overwrite load(values);
      resumed->visit(again, load);
      run(again, *resumed, 5, 10);
      EXPECT_TRUE(same_bits(again.gradient, whole.gradient));
      Snapshot one;
      Snapshot other;
      uninterrupted->visit(whole, one);
      resumed->visit(again, other);
      EXPECT_TRUE(one == other);
    });
  }
}

TEST(PowerSgdStep, AFrozenSliceHoldsItsResidualAndSendsNothing) {
  run_ranks(2, [](auto communicator) {
    Bucket bucket = make_bucket({{40, 30}, {20, 50}, {9}, {64, 64}});
    const auto meter = std::make_shared<Meter>();
    const auto metered = make_metered(std::move(communicator), meter);
    const auto reducer = make_reducer(power_sgd(2));
    reducer->prepare(bucket, metered->rank(), 2);
    const auto step = [&](std::int64_t number) {
      const auto before = meter->total().bytes_logical;
      reduce(*reducer, bucket, *metered, random_gradient(bucket, number, metered->rank()),
             {.step = number, .seed = 1});
      return meter->total().bytes_logical - before;
    };
    const auto bytes = [&] {
      std::int64_t sum = 0;
      const auto plans = reducer->plan(bucket);
      for (std::size_t i = 0; i < plans.size(); ++i) {
        if (!bucket.layout.rests(i)) sum += plans[i].payload_bytes;
      }
      return sum;
    };
    EXPECT_EQ(step(0), bytes());
    Snapshot before;
    reducer->visit(bucket, before);
    resting::set_frozen(bucket, 1, true);
    resting::set_frozen(bucket, 2, true);
    EXPECT_EQ(step(1), bytes());
    EXPECT_EQ(slice_of(bucket.gradient, bucket.slices[1]).abs().max().item<float>(), 0);
    EXPECT_EQ(slice_of(bucket.gradient, bucket.slices[2]).abs().max().item<float>(), 0);
    Snapshot after;
    reducer->visit(bucket, after);
    for (std::size_t i = 0; i < before.entries.size(); ++i) {
      const bool held = before.entries[i].first.name.ends_with("/p1");
      EXPECT_EQ(same_bits(before.entries[i].second, after.entries[i].second), held)
          << before.entries[i].first.name;
    }
    // All frozen: nothing to say, and nobody waits.
    for (std::size_t i = 0; i < bucket.slices.size(); ++i) resting::set_frozen(bucket, i, true);
    EXPECT_EQ(step(2), 0);
    for (std::size_t i = 0; i < bucket.slices.size(); ++i) resting::set_frozen(bucket, i, false);
    EXPECT_EQ(step(3), bytes());
    EXPECT_FALSE(same_bits(state_of(*reducer, bucket, "residual/p1"), before.entries[2].second));
  });
}

TEST(PowerSgdStep, ADenseStepIsTheMeanAndLeavesTheState) {
  run_ranks(4, [](auto communicator) {
    Bucket bucket = make_bucket(testing::mixed_shapes());
    const auto reducer = make_reducer(power_sgd(4));
    reducer->prepare(bucket, communicator->rank(), 4);
    reduce(*reducer, bucket, *communicator, random_gradient(bucket, 0, communicator->rank()), {});
    Snapshot before;
    reducer->visit(bucket, before);
    // Multiples of 1/8 below 16: sums and their quarters are exact.
    at::Tensor sum = at::zeros({bucket.numel()});
    at::Tensor own;
    for (int rank = 0; rank < 4; ++rank) {
      const at::Tensor g = (random_gradient(bucket, 1, rank) * 100).round() / 8;
      if (rank == communicator->rank()) own = g;
      sum += g;
    }
    reduce(*reducer, bucket, *communicator, own, {.step = 1, .transmission = Transmission::dense});
    EXPECT_TRUE(bucket.gradient.equal(sum / 4));
    Snapshot after;
    reducer->visit(bucket, after);
    EXPECT_TRUE(before == after);
  });
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).to(at::kDouble).norm().item<double>();
}

// The same but for rounding, and the same verdicts. The kernels also run without anybody looking at
// their state, which changes how it is kept: to the bit the same.
TEST(PowerSgdStep, TensorOperationsDoWhatTheKernelsDo) {
  for (const auto& options : {power_sgd(4), power_sgd(3, FeedbackKind::none), kCold}) {
    run_ranks(2, [&](auto communicator) {
      const int rank = communicator->rank();
      constexpr int kSides = 3;
      constexpr int kUnseen = 2;
      Bucket buckets[kSides];
      for (Bucket& bucket : buckets) bucket = make_bucket(testing::mixed_shapes(), at::kDouble);
      const std::unique_ptr<GradientReducer> reducers[kSides] = {
          make_reducer(options), reference::make_reducer(options), make_reducer(options)};
      for (int i = 0; i < kSides; ++i) reducers[i]->prepare(buckets[i], rank, 2);
      for (int step = 0; step < 12; ++step) {
        at::Tensor gradient = random_gradient(buckets[0], step, rank);
        if (step == 2) gradient.zero_();
        if (step == 4 && rank == 1) {
          slice_of(gradient, buckets[0].slices[6])[7] = std::numeric_limits<double>::infinity();
        }
        std::optional<std::string> verdicts[kSides];
        for (int i = 0; i < kSides; ++i) {
          resting::set_frozen(buckets[i], 0, step == 5);
          resting::set_frozen(buckets[i], 1, step == 5 || step == 6);
          buckets[i].gradient.copy_(gradient);
          reducers[i]->stage(
              buckets[i], *communicator,
              {.step = step,
               .seed = 1,
               .transmission = step == 9 ? Transmission::dense : Transmission::compressed});
          reducers[i]->settle(*communicator);
          verdicts[i] = reducers[i]->non_finite(buckets[i]);
          if (verdicts[i]) {
            reducers[i]->rollback(buckets[i]);
          } else {
            reducers[i]->commit(buckets[i]);
          }
        }
        ASSERT_EQ(verdicts[0], verdicts[1]);
        ASSERT_EQ(verdicts[0], verdicts[kUnseen]);
        ASSERT_EQ(verdicts[0].has_value(), step == 4);
        if (step == 4) continue;
        EXPECT_LT(distance(buckets[0].gradient, buckets[1].gradient), 1e-9) << "step " << step;
        ASSERT_TRUE(same_bits(buckets[0].gradient, buckets[kUnseen].gradient)) << "step " << step;
        Snapshot states[kSides];
        for (int i = 0; i < 2; ++i) reducers[i]->visit(buckets[i], states[i]);
        if (step == 11) {
          reducers[kUnseen]->visit(buckets[kUnseen], states[kUnseen]);
          EXPECT_TRUE(states[0] == states[kUnseen]);
        }
        ASSERT_EQ(states[0].entries.size(), states[1].entries.size());
        for (std::size_t e = 0; e < states[0].entries.size(); ++e) {
          EXPECT_EQ(states[0].entries[e].first.name, states[1].entries[e].first.name);
          EXPECT_LT(distance(states[0].entries[e].second, states[1].entries[e].second), 1e-9);
        }
      }
    });
  }
}

// The sizes of operations, in the order in which they are called.
struct Order final : OperationObserver {
  void begun(const OperationRecord& operation) override {
    calls.push_back(operation.bytes_logical);
    in_flight_most = std::max(in_flight_most, ++in_flight);
  }
  void waiting(const OperationRecord&) override {}
  void ended(const OperationRecord&) override { --in_flight; }
  std::vector<std::int64_t> calls;
  int in_flight = 0;
  int in_flight_most = 0;
};

class PowerSgdOverlap : public ::testing::TestWithParam<int> {};

// Several buckets in flight do what each would do alone, and their messages go in one order.
TEST_P(PowerSgdOverlap, BucketsInFlightDoWhatTheyDoAlone) {
  const int size = GetParam();
  const std::vector<std::vector<std::vector<std::int64_t>>> shapes = {
      {{40, 30}, {30}}, {{20, 60}, {8, 4, 3, 3}}, {{7}}, {{64, 64}, {33, 50}, {5}}, {{50, 50}}};
  std::mutex mutex;
  std::vector<at::Tensor> estimates[2];
  run_ranks(size, [&](auto ranks) {
    const int rank = ranks->rank();
    Order order;
    const auto meter = std::make_shared<Meter>(nullptr, &order);
    // Checked: had two ranks called different operations, both would throw.
    const auto communicator = make_metered(make_checked(std::move(ranks)), meter);
    std::vector<Bucket> buckets;
    for (const auto& shape : shapes) {
      buckets.push_back(make_bucket(shape, at::kFloat, static_cast<int>(buckets.size())));
    }
    std::vector<Bucket> alone = buckets;
    for (Bucket& bucket : alone) bucket.gradient = bucket.gradient.clone();
    const auto together = make_reducer(power_sgd(2));
    const auto one_by_one = make_reducer(power_sgd(2));
    for (std::size_t b = 0; b < buckets.size(); ++b) {
      together->prepare(buckets[b], rank, size);
      one_by_one->prepare(alone[b], rank, size);
    }
    for (int step = 0; step < 6; ++step) {
      StepContext context{.step = step, .seed = 1};
      const auto gradient = [&](std::size_t b) {
        return random_gradient(buckets[b], 10 * step + static_cast<int>(b), rank);
      };
      const auto transmission = [&](std::size_t b) {
        return step == 3 || (step == 4 && b == 1) ? Transmission::dense : Transmission::compressed;
      };
      order = {};
      for (std::size_t b = 0; b < buckets.size(); ++b) {
        buckets[b].gradient.copy_(gradient(b));
        context.transmission = transmission(b);
        together->stage(buckets[b], *communicator, context);
      }
      together->settle(*communicator);
      EXPECT_GE(order.in_flight_most, 3);
      if (step == 0) {
        const auto bytes = [](std::int64_t floats) { return 4 * floats; };
        const std::vector<std::int64_t> expected = {
            bytes(40 * 2 + 30),          // P0
            bytes((20 + 8) * 2),         // P1
            bytes(30 * 2),               // Q0
            bytes(7),                    // P2
            bytes((60 + 36) * 2),        // Q1
            bytes(64 * 2 + 33 * 2 + 5),  // P3; bucket 2 has no Q
            bytes(50 * 2),               // P4
            bytes(64 * 2 + 50 * 2),      // Q3
            bytes(50 * 2),               // Q4
        };
        EXPECT_EQ(order.calls, expected);
      }
      for (std::size_t b = 0; b < buckets.size(); ++b) {
        ASSERT_FALSE(together->non_finite(buckets[b]));
        together->commit(buckets[b]);
        context.transmission = transmission(b);
        reduce(*one_by_one, alone[b], *communicator, gradient(b), context);
        ASSERT_TRUE(same_bits(buckets[b].gradient, alone[b].gradient))
            << "bucket " << b << " step " << step;
        if (step % 3 != 2) continue;  // to look at a state changes how it is kept
        Snapshot states[2];
        together->visit(buckets[b], states[0]);
        one_by_one->visit(alone[b], states[1]);
        ASSERT_TRUE(states[0] == states[1]);
      }
    }
    const std::lock_guard lock(mutex);
    for (const Bucket& bucket : buckets) {
      auto& mine = estimates[rank == 0 ? 0 : 1];
      mine.push_back(bucket.gradient);
      mine.push_back(state_of(*together, bucket, "factor/p0"));
    }
  });
  // Every replica has rank 0's bits.
  for (std::size_t i = 0; i < estimates[1].size(); ++i) {
    const at::Tensor& first = estimates[0][i % estimates[0].size()];
    ASSERT_EQ(first.defined(), estimates[1][i].defined());
    EXPECT_TRUE(!first.defined() || same_bits(first, estimates[1][i]));
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, PowerSgdOverlap, ::testing::Values(1, 2, 3, 4, 7));

}  // namespace
}  // namespace thinwire
