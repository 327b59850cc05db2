// 1-bit Adam over several ranks against the paper's formulas in plain loops, with the plain code of
// codings, residuals and exchanges below them.
#include "optimizers/onebit_adam.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <map>
#include <vector>

#include "collectives/base/error.h"
#include "collectives/checked.h"
#include "collectives/compression/parse.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "optimizers/factory.h"
#include "tests/compression/support.h"
#include "tests/reference/reducer.h"

namespace thinwire {
namespace {

using testing::random_gradient;

constexpr double kLr = 0.01;
constexpr double kDecay = 0.1;

// Two matrices, and between them a vector, which stays exact.
std::vector<Bucket> buckets_of(at::ScalarType dtype) {
  std::vector<Bucket> buckets{testing::make_bucket({{33, 40}, {70}, {50, 7}}, dtype)};
  buckets[0].weights =
      random_gradient(buckets[0], 1000, 0).to(dtype).contiguous();  // the same on every rank
  for (const Slice& slice : buckets[0].slices)
    buckets[0].gradient.narrow(0, slice.offset, slice.numel);
  return buckets;
}
constexpr std::size_t kVector = 1;

at::Tensor flat_part(const at::Tensor& flat, const Slice& slice) {
  return flat.narrow(0, slice.offset, slice.numel);
}

// This rank's gradient in a step. The last row of the first matrix never has one, and the row
// before it has one in each tenth step only.
at::Tensor gradient_of(const Bucket& bucket, std::int64_t step, int rank) {
  at::Tensor gradient = random_gradient(bucket, step, rank);
  at::Tensor matrix = flat_part(gradient, bucket.slices[0]).view(bucket.slices[0].shape);
  matrix[32].zero_();
  if (step % 10 != 0) matrix[31].zero_();
  return gradient;
}

// One rank's optimizer and reducer, step by step as a driver has them.
class Rank {
 public:
  Rank(const OnebitAdamOptions& options, CompressionOptions compression, Communicator& communicator,
       at::ScalarType dtype)
      : communicator_(communicator), buckets_(buckets_of(dtype)) {
    compression.gradient_codec = OnebitAdam::gradient_codec(options);
    reducer_ = make_reduction(compression).reducer;
    optimizer_.emplace(buckets_, options, no_decay_on_vectors(), compression.policy);
    reducer_->prepare(buckets_[0], communicator.rank(), communicator.size());
  }

  // Whether it was committed.
  bool step(const at::Tensor& gradient, double scale = 1) {
    Bucket& bucket = buckets_[0];
    const StepPlan plan = optimizer_->plan(committed_);
    const StepContext context{.step = attempted_++,
                              .seed = 1,
                              .quantity = plan.quantity,
                              .transmission = plan.transmission,
                              .estimate = plan.reads};
    const auto queue = make_host_queue();
    bucket.gradient.copy_(gradient);
    optimizer_->before_reduce(bucket, context, *queue);
    reducer_->stage(bucket, communicator_, context);
    reducer_->settle(communicator_);
    if (reducer_->non_finite(bucket)) {
      reducer_->rollback(bucket);
      return false;
    }
    reducer_->commit(bucket);
    optimizer_->after_reduce(bucket,
                             {.lr = kLr, .gradient_scale = scale, .committed_step = committed_});
    optimizer_->end_step(buckets_, committed_++);
    return true;
  }

  OnebitAdam& optimizer() { return *optimizer_; }
  GradientReducer& reducer() { return *reducer_; }
  const Bucket& bucket() const { return buckets_[0]; }
  std::int64_t committed() const { return committed_; }

  // Everything that has state, by name.
  std::map<std::string, at::Tensor> state() {
    testing::Snapshot shown;
    optimizer_->visit(shown);
    reducer_->visit(buckets_[0], shown);
    std::map<std::string, at::Tensor> all{{"weights", buckets_[0].weights.clone()}};
    for (const auto& [entry, tensor] : shown.entries) all[entry.name] = tensor.clone();
    return all;
  }

 private:
  Communicator& communicator_;
  std::vector<Bucket> buckets_;
  std::unique_ptr<GradientReducer> reducer_;
  std::optional<OnebitAdam> optimizer_;
  std::int64_t attempted_ = 0;
  std::int64_t committed_ = 0;
};

// The same from the formulas.
class PlainRank {
 public:
  PlainRank(const OnebitAdamOptions& options, const CompressionOptions& compression,
            Communicator& communicator)
      : options_(options),
        communicator_(communicator),
        bucket_(buckets_of(at::kDouble)[0]),
        gradients_(reference::make_reducer(
            resolve({.codec = OnebitAdam::gradient_codec(options), .policy = compression.policy}))),
        momenta_(reference::make_reducer(resolve(compression))),
        m_(at::zeros_like(bucket_.gradient)),
        v_(at::zeros_like(bucket_.gradient)) {
    gradients_->prepare(bucket_, communicator.rank(), communicator.size());
    momenta_->prepare(bucket_, communicator.rank(), communicator.size());
  }

  void step(const at::Tensor& gradient) {
    const std::int64_t freeze = *options_.freeze_step;
    const bool frozen = step_ >= freeze;
    const bool refreshes =
        frozen && options_.refresh_every > 0 && (step_ - freeze + 1) % options_.refresh_every == 0;
    bucket_.gradient.copy_(gradient);
    if (frozen && !refreshes) {
      for (const std::size_t i : {std::size_t{0}, std::size_t{2}}) {
        at::Tensor g = flat_part(bucket_.gradient, bucket_.slices[i]);
        g.copy_(options_.beta1 * flat_part(m_, bucket_.slices[i]) + (1 - options_.beta1) * g);
      }
    }
    GradientReducer& reducer = frozen && !refreshes ? *momenta_ : *gradients_;
    reducer.stage(bucket_, communicator_, {.step = step_, .seed = 1});
    reducer.settle(communicator_);
    EXPECT_FALSE(reducer.non_finite(bucket_));
    reducer.commit(bucket_);

    const double b1 = options_.beta1, b2 = options_.beta2;
    const double t = static_cast<double>(step_ + 1);
    const double bias1 = 1 - std::pow(b1, t);
    for (std::size_t s = 0; s < bucket_.slices.size(); ++s) {
      const Slice& slice = bucket_.slices[s];
      double* m = m_.data_ptr<double>() + slice.offset;
      double* v = v_.data_ptr<double>() + slice.offset;
      double* w = bucket_.weights.data_ptr<double>() + slice.offset;
      const double* x = bucket_.gradient.data_ptr<double>() + slice.offset;
      const bool exact = s == kVector;
      const double decay = exact ? 0 : kDecay;  // not of vectors
      for (std::int64_t i = 0; i < slice.numel; ++i) {
        double variance = 0;  // corrected
        if (exact || !frozen) {
          m[i] = b1 * m[i] + (1 - b1) * x[i];
          v[i] = b2 * v[i] + (1 - b2) * x[i] * x[i];
          variance = v[i] / (1 - std::pow(b2, t));
        } else {
          if (step_ == freeze) v[i] /= 1 - std::pow(b2, static_cast<double>(freeze));
          if (refreshes) {
            m[i] = b1 * m[i] + (1 - b1) * x[i];
            const double keep = options_.refresh_keep;
            v[i] = v[i] > 0 ? keep * v[i] + (1 - keep) * x[i] * x[i] : x[i] * x[i];
          } else {
            m[i] = v[i] > 0 ? x[i] : 0;
          }
          variance = v[i];
        }
        w[i] =
            (1 - kLr * decay) * w[i] - kLr * (m[i] / bias1) / (std::sqrt(variance) + options_.eps);
      }
    }
    ++step_;
  }

  const Bucket& bucket() const { return bucket_; }
  const at::Tensor& momentum() const { return m_; }

 private:
  OnebitAdamOptions options_;
  Communicator& communicator_;
  Bucket bucket_;
  std::unique_ptr<GradientReducer> gradients_, momenta_;
  at::Tensor m_, v_;
  std::int64_t step_ = 0;
};

OnebitAdamOptions options_of(std::int64_t freeze_step, std::int64_t refresh_every) {
  OnebitAdamOptions options;
  options.weight_decay = kDecay;
  options.freeze_step = freeze_step;
  options.refresh_every = refresh_every;
  options.beta2 = 0.99;
  return options;
}

double largest_difference(const Bucket& a, const Bucket& b) {
  double largest = 0;
  for (const Slice& slice : a.slices) {
    largest = std::max(largest, (flat_part(a.weights, slice).to(at::kDouble) -
                                 flat_part(b.weights, slice).to(at::kDouble))
                                    .abs()
                                    .max()
                                    .item<double>());
  }
  return largest;
}

const std::vector<const char*> kCompressors = {"sign:scale=rms,block=64", "quantize:bits=4",
                                               "topk:density=0.1,block=64", "powersgd:rank=2",
                                               "none"};

TEST(OnebitAdam, EqualsTheFormulasInFloat64) {
  for (const char* compressor : kCompressors) {
    for (const int size : {1, 2, 4}) {
      for (const std::int64_t bits : {8, 32}) {
        run_ranks(size, [&](auto ranks) {
          const auto communicator = make_checked(std::move(ranks));
          const CompressionOptions compression = parse_compression(compressor, "auto");
          OnebitAdamOptions options = options_of(50, 25);
          options.warmup_bits = bits;
          Rank rank(options, compression, *communicator, at::kDouble);
          PlainRank plain(options, compression, *communicator);
          for (std::int64_t step = 0; step < 200; ++step) {
            const at::Tensor gradient = gradient_of(rank.bucket(), step, communicator->rank());
            ASSERT_TRUE(rank.step(gradient));
            plain.step(gradient);
            ASSERT_LT(largest_difference(rank.bucket(), plain.bucket()), 1e-9) << fmt::format(
                "{}, {} ranks, {} bits of gradients, step {}", compressor, size, bits, step);
          }
        });
      }
    }
  }
}

TEST(OnebitAdam, WithoutAFreezeItIsAdamW) {
  OnebitAdamOptions options = options_of(1000, 25);
  options.warmup_bits = 32;
  std::vector<Bucket> buckets = buckets_of(at::kDouble);
  std::vector<Bucket> expected = buckets_of(at::kDouble);
  OnebitAdam optimizer(buckets, options, no_decay_on_vectors());
  const auto adam = make_optimizer("adamw:beta2=0.99", {.weight_decay = kDecay}, expected);
  for (std::int64_t step = 0; step < 50; ++step) {
    EXPECT_EQ(optimizer.plan(step).quantity, Quantity::gradient);
    buckets[0].gradient.copy_(gradient_of(buckets[0], step, 0));
    expected[0].gradient.copy_(buckets[0].gradient);
    optimizer.after_reduce(buckets[0], {.lr = kLr, .committed_step = step});
    optimizer.end_step(buckets, step);
    adam->after_reduce(expected[0], {.lr = kLr, .committed_step = step});
    ASSERT_TRUE(at::equal(buckets[0].weights, expected[0].weights)) << "step " << step;
  }
}

// What was not sent of momentum is kept per coordinate, over workers and owners together.
TEST(OnebitAdam, MomentumIsConserved) {
  run_ranks(3, [&](auto ranks) {
    const auto communicator = make_checked(std::move(ranks));
    Rank rank(options_of(20, 0), parse_compression("sign:scale=rms,block=64", "auto"),
              *communicator, at::kDouble);
    // m + mean e_i + e_owner, on every rank.
    const auto kept = [&](const char* of) {
      auto state = rank.state();
      const Bucket& bucket = rank.bucket();
      at::Tensor sum = at::zeros_like(bucket.gradient);
      for (const Slice& slice : bucket.slices) {
        const auto found = state.find(std::string(of) + "residual/" + slice.name);
        if (found != state.end()) flat_part(sum, slice).add_(found->second.flatten());
      }
      communicator->all_reduce(sum, ReduceOp::sum)->wait();
      return sum / communicator->size();
    };
    const auto owners = [&] {
      testing::Snapshot shown;
      rank.reducer().visit(rank.bucket(), shown);
      at::Tensor sum = at::zeros_like(rank.bucket().gradient);
      for (const auto& [entry, tensor] : shown.entries) {
        if (!entry.name.starts_with("owner_residual/")) continue;
        for (const Slice& slice : rank.bucket().slices) {
          if (entry.name != "owner_residual/" + slice.name) continue;
          flat_part(sum, slice).slice(0, entry.begin, entry.end).add_(tensor.flatten());
        }
      }
      communicator->all_reduce(sum, ReduceOp::sum)->wait();
      return sum;
    };
    const auto momentum = [&] {
      auto state = rank.state();
      at::Tensor flat = at::zeros_like(rank.bucket().gradient);
      for (const Slice& slice : rank.bucket().slices) {
        flat_part(flat, slice).copy_(state.at("exp_avg/" + slice.name).flatten());
      }
      return flat;
    };
    for (std::int64_t step = 0; step < 20; ++step) {
      ASSERT_TRUE(rank.step(gradient_of(rank.bucket(), step, communicator->rank())));
    }
    for (std::int64_t step = 20; step < 200; ++step) {
      const at::Tensor before = momentum();
      const at::Tensor owed = kept("") + owners();
      const at::Tensor gradient = gradient_of(rank.bucket(), step, communicator->rank());
      at::Tensor mean = gradient.clone();
      communicator->all_reduce(mean, ReduceOp::sum)->wait();
      mean.div_(communicator->size());
      ASSERT_TRUE(rank.step(gradient));
      const at::Tensor left = momentum() + kept("") + owners();
      const at::Tensor expected = 0.9 * before + (1 - 0.9) * mean + owed;
      for (const std::size_t i : {std::size_t{0}, std::size_t{2}}) {
        const Slice& slice = rank.bucket().slices[i];
        at::Tensor difference = (flat_part(left, slice) - flat_part(expected, slice)).abs();
        // Rows that do not move have no momentum.
        difference *= rank.state().at("exp_avg_sq/" + slice.name).flatten() > 0;
        ASSERT_LT(difference.max().item<double>(), 1e-12) << "step " << step;
      }
    }
  });
}

TEST(OnebitAdam, RowsWithoutGradientsDoNotMoveAndRareOnesStayBounded) {
  run_ranks(2, [&](auto ranks) {
    const auto communicator = make_checked(std::move(ranks));
    OnebitAdamOptions options = options_of(15, 25);
    options.weight_decay = 0;
    Rank rank(options, parse_compression("sign:scale=rms,block=1024", "auto"), *communicator,
              at::kFloat);
    const at::Tensor start = rank.bucket().weights.clone();
    for (std::int64_t step = 0; step < 300; ++step) {
      ASSERT_TRUE(rank.step(gradient_of(rank.bucket(), step, communicator->rank())));
    }
    const Slice& slice = rank.bucket().slices[0];
    const at::Tensor moved =
        (flat_part(rank.bucket().weights, slice) - flat_part(start, slice)).view(slice.shape).abs();
    EXPECT_EQ(moved[32].max().item<double>(), 0);
    // 300 steps of the rate move nothing by more than 3 where the gradient's sign never changes.
    EXPECT_LT(moved[31].max().item<double>(), 3);
  });
}

TEST(OnebitAdam, NonFiniteStepsLeaveEveryByte) {
  run_ranks(3, [&](auto ranks) {
    const auto communicator = make_checked(std::move(ranks));
    Rank rank(options_of(10, 5), parse_compression("sign:block=64", "auto"), *communicator,
              at::kFloat);
    // In the warm-up, at the freeze, behind it, at a refresh.
    for (std::int64_t step = 0; step < 20; ++step) {
      if (step == 4 || step == 10 || step == 12 || step == 14) {
        const auto before = rank.state();
        at::Tensor gradient = gradient_of(rank.bucket(), step, communicator->rank());
        if (communicator->rank() == 1) gradient[7].fill_(std::nan(""));
        ASSERT_FALSE(rank.step(gradient));
        const auto after = rank.state();
        ASSERT_EQ(before.size(), after.size());
        for (const auto& [name, tensor] : before) {
          EXPECT_TRUE(at::equal(tensor, after.at(name))) << name << ", step " << step;
        }
      }
      ASSERT_TRUE(rank.step(gradient_of(rank.bucket(), step, communicator->rank())));
    }
  });
}

TEST(OnebitAdam, EachQuantityHasAResidualOfItsOwn) {
  run_ranks(2, [&](auto ranks) {
    const auto communicator = make_checked(std::move(ranks));
    Rank rank(options_of(10, 5), parse_compression("sign:block=64", "auto"), *communicator,
              at::kDouble);
    const std::string name = rank.bucket().slices[0].name;
    for (std::int64_t step = 0; step < 30; ++step) {
      const auto before = rank.state();
      const bool momentum = rank.optimizer().plan(step).quantity == Quantity::momentum;
      EXPECT_EQ(momentum, step >= 10 && (step - 9) % 5 != 0) << step;
      ASSERT_TRUE(rank.step(gradient_of(rank.bucket(), step, communicator->rank())));
      const auto after = rank.state();
      const auto same = [&](const std::string& of) {
        return at::equal(before.at(of + name), after.at(of + name));
      };
      EXPECT_EQ(same("residual/"), !momentum) << step;
      EXPECT_EQ(same("gradient_residual/"), momentum) << step;
      EXPECT_EQ(same("exp_avg_sq/"), momentum) << step;
    }
  });
}

TEST(OnebitAdam, FreezesByItselfOnceTheVarianceHasSettled) {
  OnebitAdamOptions options;
  options.beta2 = 0.99;
  options.freeze = {.earliest = 30, .latest = 0, .window = 10};
  std::vector<Bucket> buckets = buckets_of(at::kDouble);
  const auto frozen_after = [&](const auto& size_at) {
    OnebitAdam optimizer(buckets, options, no_decay_on_vectors());
    for (std::int64_t step = 0; step < 500 && !optimizer.frozen_after(); ++step) {
      buckets[0].gradient.fill_(size_at(step));
      optimizer.after_reduce(buckets[0], {.lr = 0, .committed_step = step});
      optimizer.end_step(buckets, step);
    }
    return optimizer.frozen_after().value_or(-1);
  };
  // Constant gradients: the corrected variance is what it was from the first step on; two looks.
  EXPECT_EQ(frozen_after([](std::int64_t) { return 1.0; }), 40);
  // As long as they grow or shrink by a few per cent a step, it has not.
  EXPECT_EQ(frozen_after([](std::int64_t step) { return std::pow(1.02, step); }), -1);
  EXPECT_EQ(frozen_after([](std::int64_t step) { return std::pow(0.98, step); }), -1);
  options.freeze.latest = 77;
  EXPECT_EQ(frozen_after([](std::int64_t step) { return std::pow(0.98, step); }), 77);
}

// ---- The paper's claim: a teacher of 20-64-1, its student, 4 ranks ----

struct Student {
  std::vector<Bucket> buckets{testing::make_bucket({{64, 20}, {64}, {1, 64}}, at::kFloat)};

  explicit Student(std::uint64_t seed) {
    Bucket& bucket = buckets[0];
    const at::Tensor draws = random_gradient(bucket, static_cast<std::int64_t>(seed), 1);
    bucket.weights = at::zeros_like(bucket.gradient);
    for (const std::size_t i : {std::size_t{0}, std::size_t{2}}) {
      const Slice& slice = bucket.slices[i];
      flat_part(bucket.weights, slice)
          .copy_(flat_part(draws, slice) * std::sqrt(3.0 / static_cast<double>(slice.shape[1])));
    }
  }
  at::Tensor of(const at::Tensor& flat, std::size_t slice) const {
    return flat_part(flat, buckets[0].slices[slice]).view(buckets[0].slices[slice].shape);
  }
  at::Tensor hidden(const at::Tensor& x) const {
    return (x.matmul(of(buckets[0].weights, 0).t()) + of(buckets[0].weights, 1)).tanh();
  }
  at::Tensor operator()(const at::Tensor& x) const {
    return hidden(x).matmul(of(buckets[0].weights, 2).t());
  }
  // Of the mean squared error.
  void fill_gradient(const at::Tensor& x, const at::Tensor& y) {
    const at::Tensor h = hidden(x);
    const at::Tensor error =
        (h.matmul(of(buckets[0].weights, 2).t()) - y) * (2.0 / static_cast<double>(x.size(0)));
    const at::Tensor back = error.matmul(of(buckets[0].weights, 2)) * (1 - h * h);
    of(buckets[0].gradient, 0).copy_(back.t().matmul(x));
    of(buckets[0].gradient, 1).copy_(back.sum(0));
    of(buckets[0].gradient, 2).copy_(error.t().matmul(h));
  }
};

at::Tensor samples(std::int64_t count, std::int64_t step, int rank) {
  Bucket like = testing::make_bucket({{count, 20}}, at::kFloat);
  return flat_part(random_gradient(like, 1000 + step, rank), like.slices[0]).view({count, 20}) * 2;
}

double student_loss(const std::string& optimizer, const std::string& compressor) {
  constexpr std::int64_t kSteps = 3000;
  double loss = 0;
  run_ranks(4, [&](auto ranks) {
    const auto communicator = make_checked(std::move(ranks));
    const Student teacher(5);
    Student student(6);
    CompressionOptions compression = parse_compression(compressor, "auto");
    compression.gradient_codec = gradient_codec_of(optimizer);
    const auto reducer = make_reduction(compression).reducer;
    const auto moved = make_optimizer(optimizer, {}, student.buckets);
    Bucket& bucket = student.buckets[0];
    reducer->prepare(bucket, communicator->rank(), communicator->size());
    const auto queue = make_host_queue();
    for (std::int64_t step = 0; step < kSteps; ++step) {
      const at::Tensor x = samples(16, step, communicator->rank());
      student.fill_gradient(x, teacher(x));
      const StepPlan plan = moved->plan(step);
      const StepContext context{
          .step = step, .seed = 1, .quantity = plan.quantity, .transmission = plan.transmission};
      moved->before_reduce(bucket, context, *queue);
      reducer->stage(bucket, *communicator, context);
      reducer->settle(*communicator);
      ASSERT_FALSE(reducer->non_finite(bucket));
      reducer->commit(bucket);
      const double lr =
          0.015 * (1 + std::cos(M_PI * static_cast<double>(step) / static_cast<double>(kSteps)));
      moved->after_reduce(bucket, {.lr = lr, .committed_step = step});
      moved->end_step(student.buckets, step);
    }
    if (communicator->rank() == 0) {
      const at::Tensor x = samples(2048, 1 << 20, 0);
      loss = (student(x) - teacher(x)).square().mean().item<double>();
    }
  });
  return loss;
}

TEST(OnebitAdam, LearnsWhatCompressedGradientsIntoAdamDoNot) {
  const double adam = student_loss("adam", "none");
  const double onebit = student_loss("onebit_adam:freeze_step=600", "sign:scale=rms");
  const double naive = student_loss("adam", "sign");
  fmt::print("Adam {:.3g}, 1-bit Adam {:.3g}, 1-bit gradients into Adam {:.3g}\n", adam, onebit,
             naive);
  EXPECT_LT(onebit, 2 * adam);
  EXPECT_GT(naive, 5 * adam);
}

// Of slices that all stay exact none has momentum to exchange.
TEST(OnebitAdam, WithoutAnythingToCompressIsAdamWThroughout) {
  OnebitAdamOptions options = options_of(3, 0);
  std::vector<Bucket> buckets = buckets_of(at::kDouble);
  std::vector<Bucket> expected = buckets_of(at::kDouble);
  OnebitAdam optimizer(buckets, options, no_decay_on_vectors(), {.dense_names = {"*"}});
  const auto adam = make_optimizer("adamw:beta2=0.99", {.weight_decay = kDecay}, expected);
  const auto queue = make_host_queue();
  for (std::int64_t step = 0; step < 20; ++step) {
    buckets[0].gradient.copy_(gradient_of(buckets[0], step, 0));
    expected[0].gradient.copy_(buckets[0].gradient);
    optimizer.before_reduce(buckets[0], {.quantity = optimizer.plan(step).quantity}, *queue);
    optimizer.after_reduce(buckets[0], {.lr = kLr, .committed_step = step});
    optimizer.end_step(buckets, step);
    adam->after_reduce(expected[0], {.lr = kLr, .committed_step = step});
    ASSERT_TRUE(at::equal(buckets[0].weights, expected[0].weights)) << "step " << step;
  }
}

// Where every gradient is clipped, the freeze changes nothing of a constant gradient's steps.
TEST(OnebitAdam, FormsItsMomentumOfClippedGradients) {
  OnebitAdamOptions options = options_of(10, 0);
  options.weight_decay = 0;
  std::vector<Bucket> buckets = buckets_of(at::kDouble);
  OnebitAdam optimizer(buckets, options, no_decay_on_vectors());
  const auto queue = make_host_queue();
  for (std::int64_t step = 0; step < 20; ++step) {
    const at::Tensor before = buckets[0].weights.clone();
    buckets[0].gradient.fill_(10);
    const bool momentum = optimizer.plan(step).quantity == Quantity::momentum;
    EXPECT_EQ(momentum, step >= 10);
    optimizer.before_reduce(buckets[0], {.quantity = optimizer.plan(step).quantity}, *queue);
    optimizer.after_reduce(
        buckets[0], {.lr = kLr, .gradient_scale = momentum ? 1 : 0.1, .committed_step = step});
    optimizer.end_step(buckets, step);
    for (const Slice& slice : buckets[0].slices) {
      const at::Tensor moved = flat_part(before, slice) - flat_part(buckets[0].weights, slice);
      EXPECT_NEAR(moved.max().item<double>(), kLr, 1e-6) << slice.name << ", step " << step;
    }
  }
}

TEST(OnebitAdam, SaysWhatCannotBe) {
  std::vector<Bucket> buckets = buckets_of(at::kFloat);
  const auto error_of = [&](const std::string& words) -> std::string {
    try {
      make_optimizer(words, {}, buckets);
      return "";
    } catch (const UsageError& error) {
      return error.what();
    }
  };
  EXPECT_NE(error_of("onebit_adam:warmup_bits=16").find("2 to 8, or 32"), std::string::npos);
  EXPECT_NE(error_of("onebit_adam:freeze_step=soon").find("freeze_step"), std::string::npos);
  EXPECT_NE(error_of("onebit_adam:refresh=3").find("refresh_every"), std::string::npos);
  EXPECT_EQ(error_of("onebit_adam:freeze_step=5,refresh_every=0"), "");
}

}  // namespace
}  // namespace thinwire
