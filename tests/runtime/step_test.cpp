// StepTransaction and GradientArrival driven with synthetic gradients: no autograd runs, so
// ThreadSanitizer sees every access that matters.
#include "runtime/step/arrival.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>

#include "collectives/base/error.h"
#include "collectives/checked.h"
#include "collectives/compression/options.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "runtime/step/communication_thread.h"
#include "tests/compression/support.h"
#include "tests/support/few_threads.h"

namespace thinwire {
namespace {

constexpr std::size_t kParameters = 6;

// Six matrices of 64 x 16 and buckets of two each.
GradientBuckets make_buckets() {
  std::vector<Parameter> list;
  for (std::size_t i = 0; i < kParameters; ++i) {
    list.push_back({fmt::format("p{}", i), at::zeros({64, 16}).set_requires_grad(true)});
  }
  return GradientBuckets(list, {.bucket_bytes = 8192, .first_bucket_bytes = 8192});
}

// One rank's steps.
struct Steps {
  Steps(GradientBuckets& buckets, GradientReducer& reducer, Communicator& communicator,
        StepParts parts = {})
      : transaction(buckets.buckets(), reducer, communicator, std::move(parts)),
        arrival(buckets, transaction, Counting::declared) {}
  void set_step(const StepContext& step) { transaction.set_step(step); }
  void arriving(std::size_t parameter) { arrival.arriving(parameter); }
  void arrived(std::size_t parameter) { arrival.arrived(parameter); }
  Verdict finish() { return arrival.finish(); }

  StepTransaction transaction;
  GradientArrival arrival;
};

void arrive(GradientBuckets& buckets, Steps& mine, std::size_t parameter, float value) {
  mine.arriving(parameter);
  const auto place = buckets.place(parameter);
  const Slice& slice = buckets.slice(parameter);
  float* slot = buckets.buckets()[place.bucket].gradient.data_ptr<float>() + slice.offset;
  for (std::int64_t i = 0; i < slice.numel; ++i) slot[i] += value;
  mine.arrived(parameter);
}

// A gradient of which no two values are equal, so that something stays behind in every state:
// `share` of it, and `added` in one place.
void arrive_uneven(GradientBuckets& buckets, Steps& mine, std::size_t parameter, int seed,
                   float share, float added) {
  mine.arriving(parameter);
  const auto place = buckets.place(parameter);
  const Slice& slice = buckets.slice(parameter);
  float* slot = buckets.buckets()[place.bucket].gradient.data_ptr<float>() + slice.offset;
  for (std::int64_t i = 0; i < slice.numel; ++i) {
    slot[i] += share * std::sin(static_cast<float>(i * (seed + 2) + slice.offset));
  }
  slot[slice.numel / 2] += added;
  mine.arrived(parameter);
}

float gradient_of(GradientBuckets& buckets, std::size_t parameter) {
  return *buckets.parameters()[parameter].tensor.grad().data_ptr<float>();
}

TEST(Step, ReducesInBucketOrderWhateverTheOrderOfArrival) {
  run_ranks(3, [](auto communicator) {
    const auto checked = make_checked(std::move(communicator));
    GradientBuckets buckets = make_buckets();
    ASSERT_EQ(buckets.buckets().size(), 3u);
    const auto reducer = make_reducer({});
    Steps mine(buckets, *reducer, *checked);
    const int rank = checked->rank();
    for (int step = 0; step < 4; ++step) {
      for (std::size_t i = 0; i < kParameters; ++i) {
        // Every rank in another order, different in each step.
        const std::size_t parameter = (i * 5 + static_cast<std::size_t>(rank + step)) % kParameters;
        arrive(buckets, mine, parameter,
               static_cast<float>(parameter) + 3.0f * static_cast<float>(rank));
      }
      EXPECT_TRUE(mine.finish().committed());
      for (std::size_t i = 0; i < kParameters; ++i) {
        EXPECT_EQ(gradient_of(buckets, i), static_cast<float>(i) + 3.0f);
      }
    }
  });
}

TEST(Step, NobodySeesTheBufferOfACodedEstimate) {
  run_ranks(2, [](auto communicator) {
    GradientBuckets buckets = make_buckets();
    const auto reducer = make_reducer({Sign{64}});
    Steps mine(buckets, *reducer, *communicator,
               {.before_reduce = [](Bucket& bucket, const StepContext&, Queue&) {
                 EXPECT_EQ(bucket.undecoded, nullptr);
               }});
    const StepContext steps[] = {
        {.step = 0, .estimate = EstimateForm::undecoded},
        {.step = 1, .transmission = Transmission::dense, .estimate = EstimateForm::undecoded},
        {.step = 2},
        {.step = 3, .estimate = EstimateForm::undecoded},
        {.step = 4, .estimate = EstimateForm::undecoded}};
    for (const StepContext& step : steps) {
      const bool frozen = step.step == 3;
      at::Tensor first = buckets.parameters()[0].tensor;
      first.set_requires_grad(!frozen);
      mine.set_step(step);
      for (std::size_t i = kParameters; i-- > 0;) {
        if (i > 0 || !frozen) arrive(buckets, mine, i, 1.0f);
      }
      ASSERT_TRUE(mine.finish().committed());
      const bool coded = step.step == 0 || step.step >= 3;
      for (const Bucket& bucket : buckets.buckets()) EXPECT_EQ(bucket.undecoded != nullptr, coded);
      for (std::size_t i = 0; i < kParameters; ++i) {
        ASSERT_EQ(buckets.parameters()[i].tensor.grad().defined(), !coded)
            << "parameter " << i << ", step " << step.step;
        if (!coded) {
          EXPECT_EQ(gradient_of(buckets, i), 1.0f);
        }
      }
    }
  });
}

TEST(Step, SignedGradientsWithFeedbackAreEqualOnAllRanks) {
  std::array<std::vector<float>, 4> results;
  run_ranks(4, [&](auto communicator) {
    GradientBuckets buckets = make_buckets();
    const auto reducer = make_reducer({Sign{64}});
    Steps mine(buckets, *reducer, *communicator);
    for (int step = 0; step < 5; ++step) {
      mine.set_step({.step = step, .seed = 1});
      for (std::size_t i = kParameters; i-- > 0;) {
        arrive(buckets, mine, i, 0.5f * static_cast<float>(communicator->rank() - 1));
      }
      EXPECT_TRUE(mine.finish().committed());
    }
    auto& values = results[static_cast<std::size_t>(communicator->rank())];
    for (std::size_t i = 0; i < kParameters; ++i) values.push_back(gradient_of(buckets, i));
  });
  for (const auto& result : results) EXPECT_EQ(result, results[0]);
}

TEST(Step, AParameterWithoutGradientOnSomeRanksCountsAsZero) {
  run_ranks(2, [](auto communicator) {
    GradientBuckets buckets = make_buckets();
    const auto reducer = make_reducer({});
    Steps mine(buckets, *reducer, *communicator);
    for (int step = 0; step < 2; ++step) {
      for (std::size_t i = kParameters; i-- > 0;) {
        // Rank 1 never touches p3; nobody touches p0. Old values must not come back.
        if (i == 0 || (i == 3 && communicator->rank() == 1)) continue;
        arrive(buckets, mine, i, 4.0f);
      }
      EXPECT_TRUE(mine.finish().committed());
      EXPECT_FALSE(buckets.parameters()[0].tensor.grad().defined());
      EXPECT_TRUE(buckets.slice(0).absent);
      EXPECT_EQ(gradient_of(buckets, 3), 2.0f);
      EXPECT_EQ(gradient_of(buckets, 5), 4.0f);
    }
  });
}

// What a gradient left behind goes on being sent where its parameter gets no more gradients but
// zeros on some other rank.
TEST(Step, ResidualsDrainWithoutGradients) {
  run_ranks(2, [](auto communicator) {
    GradientBuckets buckets = make_buckets();
    const auto reducer = make_reducer({TopK{0.1, 64}, {FeedbackKind::error_feedback}});
    Steps mine(buckets, *reducer, *communicator);
    float sum = 0;
    for (int step = 0; step < 12; ++step) {
      mine.set_step({.step = step, .seed = 1});
      for (std::size_t i = kParameters; i-- > 0;) {
        if (i == 3 && step > 0 && communicator->rank() == 0) continue;
        const bool is_zero = i == 3 && communicator->rank() == 1;
        arrive(buckets, mine, i, is_zero ? 0.0f : 4.0f);
      }
      EXPECT_TRUE(mine.finish().committed());
      sum += buckets.parameters()[3].tensor.grad().sum().item<float>();
    }
    EXPECT_EQ(sum, 64 * 16 * 2.0f);
  });
}

// Micro-batches touch the feedback once: estimates and state are those of their sum in one piece.
TEST(Step, AccumulationTouchesTheFeedbackOnce) {
  run_ranks(2, [](auto communicator) {
    std::vector<testing::Snapshot> states;
    std::vector<at::Tensor> estimates;
    for (const int micro_batches : {1, 4}) {
      GradientBuckets buckets = make_buckets();
      const auto reducer = make_reducer({Sign{64}});
      Steps mine(buckets, *reducer, *communicator);
      for (int step = 0; step < 3; ++step) {
        for (int batch = 0; batch < micro_batches; ++batch) {
          std::optional<HeldBack> held;
          if (batch + 1 < micro_batches) held.emplace(mine.arrival);
          for (std::size_t i = kParameters; i-- > 0;) {
            arrive_uneven(buckets, mine, i, 3 * step + communicator->rank(),
                          1.0f / static_cast<float>(micro_batches), 0);
          }
        }
        EXPECT_TRUE(mine.finish().committed());
      }
      estimates.push_back(buckets.parameters()[0].tensor.grad().clone());
      for (const Bucket& bucket : buckets.buckets()) reducer->visit(bucket, states.emplace_back());
    }
    EXPECT_TRUE(estimates[0].equal(estimates[1]));
    ASSERT_EQ(states.size(), 6u);
    for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(states[i] == states[i + 3]);
    EXPECT_GT(states[0].entries[0].second.abs().max().template item<float>(), 0);
  });
}

TEST(Step, AccumulatedMicroBatchesAreSentOnce) {
  run_ranks(2, [](auto communicator) {
    GradientBuckets buckets = make_buckets();
    const auto reducer = make_reducer({});
    Steps mine(buckets, *reducer, *communicator);
    {
      const HeldBack held(mine.arrival);
      for (std::size_t i = 0; i < kParameters; ++i) arrive(buckets, mine, i, 1.0f);
    }
    // p2's gradient came in the first micro-batch only.
    for (std::size_t i = 0; i < kParameters; ++i) {
      if (i != 2) arrive(buckets, mine, i, 2.0f);
    }
    EXPECT_TRUE(mine.finish().committed());
    EXPECT_EQ(gradient_of(buckets, 0), 3.0f);
    EXPECT_EQ(gradient_of(buckets, 2), 1.0f);
  });
}

TEST(Step, AGradientAfterItsBucketWasSentIsAnError) {
  run_ranks(1, [](auto communicator) {
    GradientBuckets buckets = make_buckets();
    const auto reducer = make_reducer({});
    Steps mine(buckets, *reducer, *communicator);
    for (std::size_t i = kParameters; i-- > 0;) arrive(buckets, mine, i, 1.0f);
    EXPECT_THROW(mine.arriving(5), Error);
    mine.finish();
  });
}

TEST(Step, ANonFiniteValueInAnyBucketRollsBackAllOfThem) {
  for (const auto& options : {CompressionOptions{}, CompressionOptions{Sign{64}}}) {
    run_ranks(3, [&](auto communicator) {
      GradientBuckets buckets = make_buckets();
      const auto reducer = make_reducer(options);
      Steps mine(buckets, *reducer, *communicator);
      for (std::size_t bad = 0; bad < kParameters; ++bad) {
        for (std::size_t i = kParameters; i-- > 0;) {
          const bool poisoned = i == bad && communicator->rank() == static_cast<int>(bad % 3);
          arrive(buckets, mine, i, poisoned ? std::numeric_limits<float>::infinity() : 1.0f);
        }
        const Verdict verdict = mine.finish();
        EXPECT_EQ(verdict.non_finite, fmt::format("p{}", bad));
        for (const auto& parameter : buckets.parameters()) {
          EXPECT_FALSE(parameter.tensor.grad().defined());
        }
        for (std::size_t i = kParameters; i-- > 0;) arrive(buckets, mine, i, 1.0f);
        EXPECT_TRUE(mine.finish().committed());
        EXPECT_NEAR(gradient_of(buckets, 0), 1.0f, 1e-6f);
      }
    });
  }
}

// A step in which one rank may have a bad value.
struct Step {
  int seed = 0;
  std::size_t bad = kParameters;  // the parameter; none
  float value = 0;
};

// The state of a rank after these steps, which nobody has looked at in between.
testing::Snapshot state_after(const std::vector<Step>& steps, const CompressionOptions& options,
                              Communicator& communicator) {
  GradientBuckets buckets = make_buckets();
  const Reduction reduction = make_reduction(options);
  Steps mine(buckets, *reduction.reducer, communicator, {.before = reduction.before.get()});
  for (const Step& step : steps) {
    for (std::size_t i = kParameters; i-- > 0;) {
      const bool poisoned = i == step.bad && communicator.rank() == static_cast<int>(step.bad % 3);
      arrive_uneven(buckets, mine, i, 3 * step.seed + communicator.rank(), 1,
                    poisoned ? step.value : 0);
    }
    const Verdict verdict = mine.finish();
    EXPECT_EQ(verdict.committed(), step.bad == kParameters);
    if (verdict.committed()) continue;
    EXPECT_EQ(verdict.non_finite, fmt::format("p{}", step.bad));
    for (const auto& parameter : buckets.parameters()) {
      EXPECT_FALSE(parameter.tensor.grad().defined());
    }
  }
  testing::Snapshot state;
  for (const Bucket& bucket : buckets.buckets()) {
    reduction.reducer->visit(bucket, state);
    if (reduction.before) reduction.before->visit(bucket, state);
  }
  return state;
}

// With everything that keeps state, and through the kernels: in whichever bucket the bad value is,
// the states of all are, byte by byte, those of a run without that step.
TEST(Step, ANonFiniteValueInAnyBucketLeavesEveryByteOfState) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<CompressionOptions> all = valid_combinations();
  all.push_back({TopK{0.1}, {.kind = FeedbackKind::econtrol, .eta = 0.1, .momentum = 0.9}});
  all.push_back({PowerSgd{.matrix_approximation_rank = 2}});
  std::vector<Step> good;
  std::vector<Step> with_bad;
  for (int seed = 0; seed < 18; ++seed) {
    const auto bad = static_cast<std::size_t>(seed) % kParameters;
    const float values[] = {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity};
    good.push_back({seed});
    with_bad.push_back({seed});
    with_bad.push_back({seed + 100, bad, values[seed / 6]});
  }
  for (std::size_t which = 0; which < all.size(); ++which) {
    SCOPED_TRACE(which);
    run_ranks(3, [&](auto communicator) {
      const testing::Snapshot expected = state_after(good, all[which], *communicator);
      EXPECT_TRUE(state_after(with_bad, all[which], *communicator) == expected);
      // A bad step in the end: nothing has come after it.
      EXPECT_TRUE(state_after({{1}, {2}}, all[which], *communicator) ==
                  state_after({{1}, {2}, {3, 4, kInfinity}}, all[which], *communicator));
    });
  }
}

TEST(Step, AFrozenParameterIsLeftOutAndThawsAgain) {
  run_ranks(2, [](auto communicator) {
    GradientBuckets buckets = make_buckets();
    const auto reducer = make_reducer({Sign{64}});
    Steps mine(buckets, *reducer, *communicator);
    at::Tensor frozen = buckets.parameters()[2].tensor;
    for (const bool is_frozen : {false, true, false}) {
      frozen.set_requires_grad(!is_frozen);
      for (std::size_t i = kParameters; i-- > 0;) {
        if (i != 2 || !is_frozen) arrive(buckets, mine, i, 1.0f);
      }
      EXPECT_TRUE(mine.finish().committed());
      EXPECT_EQ(frozen.grad().defined(), !is_frozen);
      const auto place = buckets.place(2);
      EXPECT_EQ(buckets.buckets()[place.bucket].layout.rests(place.slice), is_frozen);
    }
  });
}

TEST(Step, AnErrorOfTheCommunicationThreadReachesFinishOnEveryRank) {
  std::atomic<int> thrown{0};
  EXPECT_THROW(run_ranks(3,
                         [&](auto communicator) {
                           GradientBuckets buckets = make_buckets();
                           const auto reducer = make_reducer({});
                           Steps mine(
                               buckets, *reducer, *communicator,
                               {.before_reduce = [&](Bucket& bucket, const StepContext&, Queue&) {
                                 if (bucket.index == 1 && communicator->rank() == 1) {
                                   throw DataError("bucket 1 is cursed; pray");
                                 }
                               }});
                           for (std::size_t i = kParameters; i-- > 0;) {
                             arrive(buckets, mine, i, 1.0f);
                           }
                           try {
                             mine.finish();
                           } catch (const Error&) {
                             ++thrown;
                             throw;
                           }
                         }),
               Error);
  EXPECT_EQ(thrown, 3);
}

TEST(Step, LeavingInTheMiddleOfAStepLetsThePeersGo) {
  EXPECT_THROW(run_ranks(2,
                         [](auto communicator) {
                           GradientBuckets buckets = make_buckets();
                           const auto reducer = make_reducer({});
                           Steps mine(buckets, *reducer, *communicator);
                           for (std::size_t i = kParameters; i-- > 0;) {
                             if (i < 2 && communicator->rank() == 0)
                               throw DataError("no more data");
                             arrive(buckets, mine, i, 1.0f);
                           }
                           mine.finish();
                         }),
               Error);
}

TEST(Step, ACommunicationThreadThatCannotBeMadeEndsAllRanks) {
  if (!testing::kThreadsCanBeFew) GTEST_SKIP() << "a sanitizer needs the address space";
  const testing::FewThreads few(3);
  try {
    run_ranks(2, [](std::unique_ptr<Communicator> ranks) {
      const CommunicationThread thread;
      ranks->barrier()->wait();
      ranks->barrier()->wait();
    });
    ADD_FAILURE() << "there were four threads";
  } catch (const PeerLost& error) {
    ADD_FAILURE() << error.what();
  } catch (const Error& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("cannot make a thread: ")) << error.what();
  }
}

}  // namespace
}  // namespace thinwire
