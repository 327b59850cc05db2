// Layouts that change while training: what is live keeps its residual, what rests holds it, what is
// gone drops it, and nothing else is lost.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <mutex>
#include <sstream>

#include "collectives/base/error.h"
#include "collectives/compression/options.h"
#include "collectives/compression/parse.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/support.h"

namespace thinwire {
namespace {

using testing::make_bucket;
using testing::random_gradient;

constexpr int kSteps = 500;
constexpr int kEvery = 10;     // steps between two layouts
constexpr int kResumed = 255;  // in the middle of a layout's time
constexpr int kCompared = 60;  // steps of the resumed reducer

Bucket bucket_of_test() {
  return make_bucket({{9, 7}, {5}, {0, 4}, {40, 13}, {}, {24, 32}}, at::kDouble);
}

// Draws that are the same on every rank.
class Dice {
 public:
  explicit Dice(std::uint64_t key) : draws_(11, PhiloxStream::synthetic_data, key) {}
  std::int64_t below(std::int64_t end) {
    return static_cast<std::int64_t>(draws_.uniform(count_++) * static_cast<double>(end));
  }

 private:
  Philox draws_;
  std::uint64_t count_ = 0;
};

Liveness random_liveness(const Slice& slice, Dice& dice) {
  const std::int64_t kind = dice.below(10);
  if (kind < 4 || slice.numel == 0) return {};
  if (kind == 4) return Liveness::none();
  if (kind < 7) {
    // Every other one ends where rows do.
    const std::int64_t unit =
        dice.below(2) == 0 || slice.shape.size() < 2 ? 1 : slice.numel / slice.shape.front();
    const std::int64_t units = slice.numel / unit;
    std::vector<Range> ranges;
    for (std::int64_t at = dice.below(3); at < units;) {
      const std::int64_t end = std::min(units, at + 1 + dice.below(units));
      ranges.push_back({at * unit, end * unit});
      at = end + 1 + dice.below(4);
    }
    return Liveness::of_ranges(ranges);
  }
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>((slice.numel + 7) / 8));
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(dice.below(256));
  return Liveness::of_bitmap(bytes);
}

SliceCoding random_coding(const CompressionOptions& options, Dice& dice) {
  SliceCoding coding;
  if (dice.below(3) == 0) return coding;
  if (std::holds_alternative<Sign>(options.codec)) coding.block = 8 * (1 + dice.below(12));
  if (std::holds_alternative<Quantize>(options.codec)) {
    coding.bits = 1 + dice.below(8);
    if (dice.below(2) == 0) coding.block = 32 * (1 + dice.below(4));
  }
  if (std::holds_alternative<TopK>(options.codec)) {
    coding.density = 0.05 * static_cast<double>(1 + dice.below(6));
    if (dice.below(2) == 0) coding.block = 32 + dice.below(60);
  }
  if (std::holds_alternative<PowerSgd>(options.codec)) coding.rank = dice.below(9);
  return coding;
}

Layout random_layout(const Bucket& bucket, const CompressionOptions& options, Dice& dice) {
  std::vector<SliceLayout> parts;
  for (const Slice& slice : bucket.slices) {
    SliceLayout& part = parts.emplace_back();
    part.live = random_liveness(slice, dice);
    part.frozen = dice.below(6) == 0;
    if (dice.below(4) == 0) part.inactive = Inactive::gone;
    if (!slice.is_vector() && slice.numel > 0) part.coding = random_coding(options, dice);
  }
  return {bucket.slices, parts, bucket.layout.version() + 1};
}

// 1 where an element is live, else 0.
at::Tensor live_mask(const Bucket& bucket) {
  at::Tensor mask = at::zeros({bucket.numel()}, at::kDouble);
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    if (bucket.layout.rests(i)) continue;
    for (const Range& live : bucket.layout.of(i).live.ranges(slice.numel)) {
      mask.narrow(0, slice.offset + live.begin, live.count()).fill_(1);
    }
  }
  return mask;
}

// 1 where the layout drops an element's state.
at::Tensor gone_mask(const Bucket& bucket) {
  at::Tensor mask = at::zeros({bucket.numel()}, at::kDouble);
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    if (bucket.layout.of(i).inactive != Inactive::gone) continue;
    at::Tensor own = mask.narrow(0, slice.offset, slice.numel);
    own.fill_(1);
    for (const Range& live : bucket.layout.of(i).live.ranges(slice.numel)) {
      own.narrow(0, live.begin, live.count()).zero_();
    }
  }
  return mask;
}

// Each kind of state as one flat vector of the bucket's size; factors and weights are left out.
class Flat final : public StateVisitor {
 public:
  Flat(const Bucket& bucket, GradientReducer& reducer) : bucket_(bucket) {
    reducer.visit(bucket, *this);
  }
  at::Tensor operator[](const std::string& kind) {
    at::Tensor& flat = kinds_[kind];
    if (!flat.defined()) flat = at::zeros({bucket_.numel()}, at::kDouble);
    return flat;
  }

 private:
  void tensor(const StateEntry& entry) override {
    const auto slash = entry.name.find('/');
    const std::string kind = entry.name.substr(0, slash);
    if (kind == "eta" || kind == "factor") return;
    for (const auto& slice : bucket_.slices) {
      if (slice.name != entry.name.substr(slash + 1)) continue;
      (*this)[kind]
          .narrow(0, slice.offset + entry.begin, entry.tensor.numel())
          .copy_(entry.tensor.flatten());
    }
  }
  void counter(const std::string&, std::int64_t&) override {}

  const Bucket& bucket_;
  std::map<std::string, at::Tensor> kinds_;
};

// Copies the state of one reducer, and puts it into another one.
class Copied final : public StateVisitor {
 public:
  enum class Direction { out, in };
  Direction direction = Direction::out;
  void tensor(const StateEntry& entry) override {
    const std::string key = fmt::format("{} {}", entry.name, entry.begin);
    if (direction == Direction::out) {
      tensors_[key] = entry.tensor.clone();
    } else {
      const auto found = tensors_.find(key);
      ASSERT_NE(found, tensors_.end()) << key;
      ASSERT_EQ(found->second.sizes(), entry.tensor.sizes()) << key;
      entry.tensor.copy_(found->second);
      tensors_.erase(found);
    }
  }
  void counter(const std::string&, std::int64_t&) override {}
  std::size_t left() const { return tensors_.size(); }

 private:
  std::map<std::string, at::Tensor> tensors_;
};

class Sum {
 public:
  void add(const at::Tensor& part) {
    const std::lock_guard lock(mutex_);
    total_ = total_.defined() ? total_ + part : part.clone();
  }
  const at::Tensor& total() const { return total_; }

 private:
  std::mutex mutex_;
  at::Tensor total_;
};

double largest(const at::Tensor& values) {
  return values.abs().max().item<double>();
}

void set_layout(GradientReducer& reducer, Bucket& bucket, const Layout& layout) {
  reducer.require_possible(bucket, layout);
  bucket.layout = layout;
  reducer.relayout(bucket);
}

// One rank's bucket and its reducer.
struct Replica {
  explicit Replica(const CompressionOptions& options) : reducer(make_reducer(options)) {}
  Bucket bucket = bucket_of_test();
  std::unique_ptr<GradientReducer> reducer;

  // Returns whether it was committed.
  bool step(const at::Tensor& gradient, Communicator& communicator, const StepContext& context,
            const std::vector<bool>& absent) {
    for (Slice& slice : bucket.slices) slice.absent = false;
    bucket.gradient.copy_(gradient);
    reducer->stage(bucket, communicator, context);
    reducer->settle(communicator);
    const bool finite = !reducer->non_finite(bucket).has_value();
    for (std::size_t i = 0; i < absent.size(); ++i) {
      bucket.slices[i].absent = absent[i] && !bucket.layout.rests(i);
    }
    if (finite) {
      Bucket view = bucket;
      reducer->show_estimate(bucket, view);
      const at::Tensor shown = view.gradient.clone();
      reducer->commit(bucket);
      const at::Tensor seen = mask_of_updates();
      EXPECT_TRUE(at::equal(shown * seen, bucket.gradient * seen)) << context.step;
    } else {
      reducer->rollback(bucket);
    }
    return finite;
  }
  at::Tensor mask_of_updates() const {
    at::Tensor mask = live_mask(bucket);
    for (const Slice& slice : bucket.slices) {
      if (slice.absent) mask.narrow(0, slice.offset, slice.numel).zero_();
    }
    return mask;
  }
};

struct Sums {
  Sum residuals, gradients, dropped;
  std::mutex mutex;
  at::Tensor estimates;  // of one rank
};

void train(const CompressionOptions& options, Communicator& communicator, Sums& sums) {
  const int rank = communicator.rank();
  const int size = communicator.size();
  const bool tracks = options.feedback.kind == FeedbackKind::econtrol;
  Replica replica(options);
  std::unique_ptr<Replica> resumed;
  Bucket& bucket = replica.bucket;
  replica.reducer->prepare(bucket, rank, size);
  at::Tensor own = at::zeros({bucket.numel()}, at::kDouble);
  at::Tensor sent = at::zeros_like(own);
  at::Tensor dropped = at::zeros_like(own);
  at::Tensor own_dropped = at::zeros_like(own);
  at::Tensor tracked = at::zeros_like(own);
  Dice dice(static_cast<std::uint64_t>(options.codec.index()));
  for (int step = 0; step < kSteps; ++step) {
    if (step % kEvery == 0 && step > 0) {
      const Layout next = random_layout(bucket, options, dice);
      Flat before(bucket, *replica.reducer);
      const at::Tensor worker = before["residual"].clone();
      const at::Tensor owner = before["owner_residual"].clone();
      set_layout(*replica.reducer, bucket, next);
      dropped += (worker / size + owner) * gone_mask(bucket);
      own_dropped += worker * gone_mask(bucket);
      if (resumed) set_layout(*resumed->reducer, resumed->bucket, next);
    }
    if (step == kResumed) {
      // As from a checkpoint: the first layout, then the one of now, then the state.
      Copied state;
      replica.reducer->visit(bucket, state);
      resumed = std::make_unique<Replica>(options);
      resumed->reducer->prepare(resumed->bucket, rank, size);
      set_layout(*resumed->reducer, resumed->bucket, bucket.layout);
      state.direction = Copied::Direction::in;
      resumed->reducer->visit(resumed->bucket, state);
      EXPECT_EQ(state.left(), 0U);
    }
    if (step == kResumed + kCompared) resumed.reset();

    const at::Tensor live = live_mask(bucket);
    at::Tensor gradient = random_gradient(bucket, step, rank) * live;
    std::vector<bool> absent;
    for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
      const Slice& slice = bucket.slices[i];
      absent.push_back(step > 300 && (step * 7 + static_cast<int>(i)) % 5 < 2);
      if (absent[i]) gradient.narrow(0, slice.offset, slice.numel).zero_();
    }
    const bool poisoned =
        step % 101 == 7 && live.narrow(0, bucket.slices[3].offset, 1).item<double>() == 1;
    if (poisoned && rank == step % size) {
      gradient[bucket.slices[3].offset] = std::numeric_limits<double>::quiet_NaN();
    }
    const StepContext context{
        .step = step,
        .seed = 1,
        .transmission = step % 37 == 36 ? Transmission::dense : Transmission::compressed};
    const bool committed = replica.step(gradient, communicator, context, absent);
    ASSERT_EQ(committed, !poisoned) << step;
    if (resumed) {
      resumed->step(gradient, communicator, context, absent);
      if (committed) {
        ASSERT_TRUE(at::equal(bucket.gradient, resumed->bucket.gradient)) << "step " << step;
      }
    }
    if (!committed) continue;
    EXPECT_EQ(largest(bucket.gradient * (1 - replica.mask_of_updates())), 0) << step;
    own += gradient;
    sent += bucket.gradient;
    if (tracks) {
      Flat state(bucket, *replica.reducer);
      tracked += state["tracker"] * replica.mask_of_updates();
    }
  }
  Flat state(bucket, *replica.reducer);
  if (tracks) {
    EXPECT_LT(largest(tracked + state["residual"] + own_dropped - own), 1e-8);
  }
  sums.residuals.add(state["residual"] / size + state["owner_residual"]);
  sums.gradients.add(own / size);
  const std::lock_guard lock(sums.mutex);
  if (sums.estimates.defined()) {
    EXPECT_TRUE(at::equal(sums.estimates, sent)) << "ranks have different estimates";
  }
  sums.estimates = sent;
  sums.dropped.add(dropped);
}

void lose_nothing(const std::string& compression, const std::vector<int>& sizes) {
  std::istringstream words(compression);
  std::string compressor, feedback, exchange;
  words >> compressor >> feedback >> exchange;
  const CompressionOptions options = parse_compression(compressor, feedback, exchange);
  for (const int size : sizes) {
    SCOPED_TRACE(fmt::format("{} ranks", size));
    Sums sums;
    run_ranks(size, [&](auto communicator) { train(options, *communicator, sums); });
    if (options.feedback.kind == FeedbackKind::none) continue;
    EXPECT_LT(largest(sums.estimates + sums.residuals.total() + sums.dropped.total() -
                      sums.gradients.total()),
              1e-8);
    EXPECT_GT(largest(sums.estimates), 1);
  }
}

class RandomLayouts : public ::testing::TestWithParam<const char*> {};

// Half of the ranks' numbers for each, as rank threads wait for each other most of the time.
TEST_P(RandomLayouts, LoseNothingAndResumeBitForBit) {
  const bool even = std::string(GetParam()).size() % 2 == 0;
  lose_nothing(GetParam(), even ? std::vector{1, 3} : std::vector{2, 5});
}

// All of them: two minutes, by hand (--gtest_also_run_disabled_tests).
TEST_P(RandomLayouts, DISABLED_LoseNothingOnAnyNumberOfRanks) {
  lose_nothing(GetParam(), {1, 2, 3, 5});
}

INSTANTIATE_TEST_SUITE_P(
    Feedbacks, RandomLayouts,
    ::testing::Values(
        "none none all_reduce", "none none two_stage", "sign:block=64 error_feedback two_stage",
        "sign:block=32,scale=rms error_feedback all_gather", "sign:block=64 econtrol two_stage",
        "bf16 error_feedback two_stage", "quantize:bits=3,block=64 error_feedback two_stage",
        "quantize:bits=4,block=32 error_feedback all_gather",
        "quantize:bits=4,block=32 econtrol two_stage", "quantize:bits=4,block=32 none two_stage",
        "topk:density=0.1,block=64 error_feedback all_gather",
        "topk:density=0.1,block=64 error_feedback two_stage",
        "topk:density=0.1,block=64 econtrol all_gather",
        "topk:density=0.1,block=64 econtrol:eta=0.03 two_stage",
        "powersgd:rank=2 error_feedback all_reduce",
        "powersgd:rank=2,warm_start=false error_feedback all_reduce",
        "powersgd:rank=2 none all_reduce"));

// The oracle of partly live slices: a bucket that has nothing but their live elements.
TEST(Layout, CodecsSeeTheLiveValuesWithoutGaps) {
  for (const char* compressor :
       {"sign:block=32", "quantize:bits=3,block=32", "topk:density=0.2,block=50", "bf16"}) {
    for (const char* feedback : {"error_feedback", "econtrol:eta=0.1", "none"}) {
      for (const int size : {1, 3}) {
        if (std::string(compressor) == "bf16" && (*feedback == 'e' && feedback[1] == 'c')) continue;
        SCOPED_TRACE(fmt::format("{} {} {}", compressor, feedback, size));
        // With owners parts would be cut elsewhere.
        const bool gathers = std::string(compressor) != "bf16";
        if (!gathers && size > 1) continue;
        const CompressionOptions options = parse_compression(
            compressor, feedback, gathers && size > 1 ? "all_gather" : "two_stage");
        run_ranks(size, [&](auto communicator) {
          const int rank = communicator->rank();
          Dice dice(3);
          Bucket bucket = bucket_of_test();
          std::vector<SliceLayout> parts(bucket.slices.size());
          std::vector<std::vector<std::int64_t>> shapes;
          for (std::size_t i = 0; i < parts.size(); ++i) {
            const Slice& slice = bucket.slices[i];
            if (!slice.is_vector() && slice.numel > 0) {
              std::vector<std::uint8_t> bytes(static_cast<std::size_t>((slice.numel + 7) / 8));
              for (auto& byte : bytes) byte = static_cast<std::uint8_t>(dice.below(256));
              parts[i].live = Liveness::of_bitmap(bytes);
              shapes.push_back({parts[i].live.count(slice.numel), 1});
            } else {
              shapes.push_back(slice.shape);
            }
          }
          Bucket compact = make_bucket(shapes, at::kDouble);
          const auto reducer = make_reducer(options);
          const auto expected = make_reducer(options);
          reducer->prepare(bucket, rank, size);
          expected->prepare(compact, rank, size);
          set_layout(*reducer, bucket, Layout(bucket.slices, parts, 1));
          // Elements of the bucket in the order of the compact one, which has gaps of its own.
          const auto each_live = [&](const auto& body) {
            for (std::size_t i = 0; i < parts.size(); ++i) {
              std::int64_t to = compact.slices[i].offset;
              for (const Range& live : live_ranges(bucket, i)) {
                for (std::int64_t at = live.begin; at < live.end; ++at) {
                  body(bucket.slices[i].offset + at, to++);
                }
              }
            }
          };
          for (int step = 0; step < 8; ++step) {
            const at::Tensor gradient = random_gradient(bucket, step, rank) * live_mask(bucket);
            bucket.gradient.copy_(gradient);
            compact.gradient.zero_();
            each_live([&](std::int64_t from, std::int64_t to) {
              compact.gradient.data_ptr<double>()[to] = gradient.data_ptr<double>()[from];
            });
            const StepContext context{
                .step = 16 * step + 1,
                .seed = 1,
                .transmission = step == 4 ? Transmission::dense : Transmission::compressed};
            for (auto [one, of] : {std::pair(reducer.get(), &bucket), {expected.get(), &compact}}) {
              one->stage(*of, *communicator, context);
              one->settle(*communicator);
              ASSERT_FALSE(one->non_finite(*of).has_value());
              one->commit(*of);
            }
            std::int64_t different = 0;
            each_live([&](std::int64_t from, std::int64_t to) {
              different += bucket.gradient.const_data_ptr<double>()[from] !=
                                   compact.gradient.const_data_ptr<double>()[to]
                               ? 1
                               : 0;
            });
            ASSERT_EQ(different, 0) << "step " << step;
          }
        });
      }
    }
  }
}

TEST(Layout, CountsWhatIsLive) {
  const Liveness ranges = Liveness::of_ranges({{1, 3}, {5, 6}});
  const Liveness bits = Liveness::of_bitmap({0b00100110});
  EXPECT_EQ(ranges.count(8), 3);
  EXPECT_EQ(bits.ranges(8), ranges.ranges(8));
  EXPECT_EQ(ranges.bitmap(8), bits.bitmap(8));
  EXPECT_EQ(Liveness().count(8), 8);
  EXPECT_EQ(Liveness::none().count(8), 0);
}

TEST(Layout, RefusesWhatCannotBe) {
  const Bucket bucket = bucket_of_test();
  const auto layout = [&](const Liveness& live) {
    std::vector<SliceLayout> parts(bucket.slices.size());
    parts[0].live = live;
    return Layout(bucket.slices, parts, 1);
  };
  EXPECT_THROW(layout(Liveness::of_ranges({{0, 64}})), UsageError);
  EXPECT_THROW(layout(Liveness::of_ranges({{3, 3}})), UsageError);
  EXPECT_THROW(layout(Liveness::of_ranges({{0, 3}, {3, 5}})), UsageError);
  EXPECT_THROW(layout(Liveness::of_ranges({{-1, 3}})), UsageError);
  EXPECT_THROW(layout(Liveness::of_bitmap({1, 2})), UsageError);
  EXPECT_NO_THROW(layout(Liveness::of_ranges({{0, 63}})));
}

TEST(Layout, HashesWhatRanksMustAgreeOn) {
  const Bucket bucket = bucket_of_test();
  std::vector<SliceLayout> parts(bucket.slices.size());
  EXPECT_EQ(Layout(bucket.slices, parts, 5).hash(), 0U);
  parts[3].coding.bits = 3;
  const Layout coded(bucket.slices, parts, 1);
  parts[3].live = Liveness::of_ranges({{0, 13}});
  const Layout some(bucket.slices, parts, 2);
  std::vector<std::uint8_t> bytes(65);
  bytes[0] = 0xff;
  bytes[1] = 0x1f;
  parts[3].live = Liveness::of_bitmap(bytes);
  EXPECT_NE(coded.hash(), 0U);
  EXPECT_NE(coded.hash(), some.hash());
  EXPECT_EQ(some.hash(), Layout(bucket.slices, parts, 3).hash()) << "the same elements";
  parts[3].inactive = Inactive::gone;
  EXPECT_NE(some.hash(), Layout(bucket.slices, parts, 3).hash()) << "ranks must drop the same";
  parts[3].inactive = Inactive::rests;
  parts[3].frozen = true;
  EXPECT_NE(some.hash(), Layout(bucket.slices, parts, 3).hash());
}

TEST(Layout, ReducersRefuseNumbersThatTheyDoNotHave) {
  const Bucket bucket = bucket_of_test();
  const auto refused = [&](const char* compressor, const SliceCoding& coding) {
    const auto reducer = make_reducer(parse_compression(compressor, "auto"));
    std::vector<SliceLayout> parts(bucket.slices.size());
    parts[3].coding = coding;
    try {
      reducer->require_possible(bucket, Layout(bucket.slices, parts, 1));
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find("p3"), std::string::npos) << error.what();
      return true;
    }
    return false;
  };
  EXPECT_TRUE(refused("sign", {.bits = 2}));
  EXPECT_TRUE(refused("sign", {.block = 12}));
  EXPECT_TRUE(refused("quantize", {.bits = 9}));
  EXPECT_TRUE(refused("quantize", {.density = 0.1}));
  EXPECT_TRUE(refused("quantize:rounding=stochastic", {.bits = 1}));
  EXPECT_TRUE(refused("topk", {.density = 0.0}));
  EXPECT_TRUE(refused("topk", {.rank = 2}));
  EXPECT_TRUE(refused("none", {.bits = 2}));
  EXPECT_TRUE(refused("powersgd", {.bits = 2}));
  EXPECT_TRUE(refused("powersgd", {.rank = -1}));
  EXPECT_FALSE(refused("powersgd", {.rank = 0}));
  EXPECT_FALSE(refused("quantize", {.bits = 2, .block = 64}));
}

}  // namespace
}  // namespace thinwire
