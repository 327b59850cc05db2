// Slices of which no rank had a gradient, in every combination: their state is as before the step,
// their estimate is no update, and for the others it is as if they had been frozen.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>

#include "collectives/checked.h"
#include "collectives/compression/codec/typed.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/compression/undecoded.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/averaging.h"
#include "tests/compression/combinations.h"
#include "tests/compression/support.h"
#include "tests/reference/reducer.h"
#include "tests/support/frozen.h"

namespace thinwire {
namespace {

using testing::combinations;
using testing::make_bucket;
using testing::NamedOptions;
using testing::random_gradient;
using testing::Snapshot;

constexpr std::int64_t kSteps = 28;

std::vector<NamedOptions> all_ways() {
  std::vector<NamedOptions> ways;
  for (const std::size_t which : {0, 1}) {
    for (const NamedOptions& way : combinations(which)) {
      ways.push_back(way);
      if (way.options.feedback.kind != FeedbackKind::econtrol) continue;
      NamedOptions averaged = way;
      averaged.name += ", averaged";
      averaged.options.feedback.momentum = 0.7;
      ways.push_back(averaged);
    }
  }
  for (const auto feedback : {FeedbackKind::error_feedback, FeedbackKind::none}) {
    for (const bool warm : {true, false}) {
      ways.push_back(
          {fmt::format("powersgd {} x {}", warm ? "warm" : "cold", static_cast<int>(feedback)),
           {PowerSgd{.matrix_approximation_rank = 2, .warm_start = warm}, {feedback}}});
    }
  }
  return ways;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

at::Tensor part(const at::Tensor& flat, const Slice& slice) {
  return flat.narrow(0, slice.offset, slice.numel);
}

// What a commit left, in memory: zero where no slice moves.
at::Tensor estimate(const Bucket& bucket) {
  if (!bucket.undecoded) return bucket.gradient;
  at::Tensor values = at::zeros_like(bucket.gradient);
  with_type(values.scalar_type(), [&]<typename T>(T) {
    for_each_tile<T>(bucket, {}, [&](const DecodedTile<T>& tile) {
      EXPECT_FALSE(bucket.rests(static_cast<std::size_t>(tile.slice)));
      std::copy_n(tile.values, tile.count, values.data_ptr<T>() + tile.begin);
    });
  });
  return values;
}

// The state of one slice.
Snapshot of_slice(const Snapshot& all, const Slice& slice) {
  Snapshot own;
  for (const auto& entry : all.entries) {
    if (entry.first.name.ends_with("/" + slice.name)) own.entries.push_back(entry);
  }
  return own;
}

struct Side {
  std::unique_ptr<GradientReducer> reducer;
  std::vector<Bucket> buckets;
};

// What happens in a step, the same on all ranks.
struct Step {
  StepContext context;
  bool poisoned = false;
  std::vector<std::vector<bool>> absent;  // by bucket and slice
  std::vector<std::vector<bool>> frozen;
};

Step make_step(std::int64_t number, const std::vector<Bucket>& buckets, EstimateForm form) {
  const Philox draws(5, PhiloxStream::synthetic_data, static_cast<std::uint64_t>(number));
  Step step;
  // Such that in all of them a part of the mean of trackers is formed anew.
  step.context = {.step = 16 * number, .seed = 1, .estimate = form};
  if (number % 9 == 4) step.context.transmission = Transmission::dense;
  step.poisoned = number % 7 == 5;
  std::uint64_t draw = 0;
  for (const Bucket& bucket : buckets) {
    std::vector<bool>& absent = step.absent.emplace_back();
    std::vector<bool>& frozen = step.frozen.emplace_back();
    for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
      // In some steps all are there, and in some one is frozen for a while.
      absent.push_back(number % 3 != 0 && draws.uniform(draw++) < 0.4);
      frozen.push_back(number / 8 % 2 == 1 && i == 3);
      if (frozen.back()) absent.back() = false;
    }
  }
  return step;
}

// Whether messages are summed as they are, so that the order of sums depends on what else is in
// them.
bool adds_up(const CompressionOptions& options, const Step& step) {
  return step.context.transmission == Transmission::dense ||
         resolve(options).exchange == ExchangeKind::all_reduce ||
         options.feedback.kind == FeedbackKind::econtrol;
}

void run(const NamedOptions& way, int size, EstimateForm form,
         std::unique_ptr<GradientReducer> (*make)(const CompressionOptions&)) {
  SCOPED_TRACE(fmt::format("{}, {} ranks", way.name, size));
  // Of each step, as the rank that came first had them.
  std::mutex mutex;
  std::map<std::int64_t, std::vector<at::Tensor>> estimates;
  run_ranks(size, [&](auto ranks) {
    const int rank = ranks->rank();
    const auto communicator = make_checked(std::move(ranks));
    const auto make_side = [&] {
      Side side{testing::with_averages(way.options, make),
                {make_bucket(testing::mixed_shapes(), at::kFloat, 0),
                 make_bucket({{40, 31}, {17}}, at::kFloat, 1)}};
      for (const Bucket& bucket : side.buckets) side.reducer->prepare(bucket, rank, size);
      return side;
    };
    // In the second what is absent in the first is frozen.
    Side sides[] = {make_side(), make_side()};
    bool comparable = true;
    for (std::int64_t number = 0; number < kSteps; ++number) {
      const Step step = make_step(number, sides[0].buckets, form);
      // With three ranks the sides part here, by the last bits.
      if (size > 2 && adds_up(way.options, step)) comparable = false;
      // To look at a state changes how it is kept, so do it now and then only.
      const bool looks = number % 4 < 2;
      std::vector<Snapshot> before(sides[0].buckets.size());
      for (Bucket& bucket : sides[0].buckets) {
        if (looks) sides[0].reducer->visit(bucket, before[static_cast<std::size_t>(bucket.index)]);
      }
      for (int i = 0; i < 2; ++i) {
        auto& [reducer, buckets] = sides[i];
        for (Bucket& bucket : buckets) {
          const auto b = static_cast<std::size_t>(bucket.index);
          bucket.gradient.copy_(random_gradient(bucket, 2 * number + bucket.index, rank));
          for (std::size_t s = 0; s < bucket.slices.size(); ++s) {
            Slice& slice = bucket.slices[s];
            slice.absent = false;
            resting::set_frozen(bucket, s, step.frozen[b][s] || (i == 1 && step.absent[b][s]));
            if (step.frozen[b][s] || step.absent[b][s]) part(bucket.gradient, slice).zero_();
          }
          if (step.poisoned && bucket.index == 1) {
            resting::set_frozen(bucket, 0, false);
            if (rank == 0) bucket.gradient[3] = std::numeric_limits<float>::infinity();
          }
          reducer->stage(bucket, *communicator, step.context);
        }
        reducer->settle(*communicator);
        bool bad = false;
        for (Bucket& bucket : buckets) bad = reducer->non_finite(bucket).has_value() || bad;
        ASSERT_EQ(bad, step.poisoned);
        for (Bucket& bucket : buckets) {
          const auto b = static_cast<std::size_t>(bucket.index);
          for (std::size_t s = 0; s < bucket.slices.size() && i == 0; ++s) {
            bucket.slices[s].absent = step.absent[b][s];
          }
          step.poisoned ? reducer->rollback(bucket) : reducer->commit(bucket);
        }
      }
      for (std::size_t b = 0; b < sides[0].buckets.size(); ++b) {
        const Bucket& bucket = sides[0].buckets[b];
        const std::string where = fmt::format("bucket {}, step {}", b, number);
        Snapshot states[2];
        for (int i = 0; i < 2 && looks; ++i) {
          sides[i].reducer->visit(sides[i].buckets[b], states[i]);
        }
        for (std::size_t s = 0; s < bucket.slices.size() && looks; ++s) {
          if (!step.absent[b][s]) continue;
          EXPECT_TRUE(of_slice(before[b], bucket.slices[s]) ==
                      of_slice(states[0], bucket.slices[s]))
              << where << ", slice " << s;
        }
        if (comparable) {
          ASSERT_TRUE(states[0] == states[1]) << where;
        }
        if (step.poisoned) continue;
        const at::Tensor got = estimate(bucket);
        for (const Slice& slice : bucket.slices) {
          if (!resting::rests(bucket, slice)) continue;
          EXPECT_EQ(part(got, slice).count_nonzero().item<std::int64_t>(), 0) << where;
        }
        if (comparable) {
          const at::Tensor expected = estimate(sides[1].buckets[b]);
          for (const Slice& slice : bucket.slices) {
            ASSERT_TRUE(same_bits(part(got, slice), part(expected, slice)))
                << where << ", " << slice.name;
          }
        }
        const std::lock_guard lock(mutex);
        std::vector<at::Tensor>& first = estimates[number];
        if (first.size() <= b) {
          first.push_back(got.clone());
        } else {
          ASSERT_TRUE(same_bits(first[b], got)) << where << ": ranks have different estimates";
        }
      }
    }
  });
}

class Absent : public ::testing::TestWithParam<int> {};

TEST_P(Absent, SlicesAreAsBeforeTheStepThroughTheKernels) {
  for (const NamedOptions& way : all_ways()) {
    for (const EstimateForm form : {EstimateForm::values, EstimateForm::undecoded}) {
      run(way, GetParam(), form,
          [](const CompressionOptions& options) { return make_reducer(options); });
    }
  }
}

TEST_P(Absent, SlicesAreAsBeforeTheStepInThePlainComposition) {
  for (const NamedOptions& way : all_ways()) {
    run(way, GetParam(), EstimateForm::values, reference::make_reducer);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, Absent, ::testing::Values(1, 2, 3));

}  // namespace
}  // namespace thinwire
