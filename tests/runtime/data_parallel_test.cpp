// DataParallel in a loop with torch::optim, the way a user attaches it.
#include "runtime/data_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <limits>
#include <mutex>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/threads/thread_communicator.h"
#include "tests/compression/support.h"

namespace thinwire {
namespace {

struct Net : torch::nn::Module {
  Net() {
    first = register_module("first", torch::nn::Linear(6, 16));
    second = register_module("second", torch::nn::Linear(16, 3));
    unused = register_module("unused", torch::nn::Linear(2, 2));
  }
  at::Tensor forward(const at::Tensor& x) { return second(torch::tanh(first(x))); }
  torch::nn::Linear first{nullptr};
  torch::nn::Linear second{nullptr};
  torch::nn::Linear unused{nullptr};
};

std::shared_ptr<Net> make_net(std::uint64_t key, at::ScalarType dtype = at::kDouble) {
  auto net = std::make_shared<Net>();
  net->to(dtype);
  const torch::NoGradGuard no_grad;
  for (auto& item : net->named_parameters()) {
    const Philox draws(key, PhiloxStream::initialization, hash64(item.key()));
    at::Tensor values = torch::empty({item.value().numel()}, torch::kDouble);
    for (std::int64_t i = 0; i < values.numel(); ++i) {
      values[i] = draws.uniform(static_cast<std::uint64_t>(i)) - 0.5;
    }
    item.value().copy_(values.view(item.value().sizes()));
  }
  return net;
}

// The samples of one step: row r of the global batch.
at::Tensor input_of(int step, int row) {
  return torch::sin(torch::arange(6, torch::kDouble) * (row + 1) + step).unsqueeze(0);
}
at::Tensor target_of(int step, int row) {
  return torch::cos(torch::arange(3, torch::kDouble) + row * 2 + step).unsqueeze(0);
}

enum class ZeroGrad { none_form, zero_form, never };

void zero(torch::optim::Optimizer& optimizer, ZeroGrad form) {
  if (form == ZeroGrad::none_form) optimizer.zero_grad();
  if (form == ZeroGrad::zero_form) optimizer.zero_grad(/*set_to_none=*/false);
}

std::vector<at::Tensor> weights_of(const Net& net) {
  std::vector<at::Tensor> weights;
  for (const auto& parameter : net.parameters()) weights.push_back(parameter.detach().clone());
  return weights;
}

TEST(DataParallel, FourRanksEqualOneRankOnAllSamples) {
  for (const ZeroGrad form : {ZeroGrad::none_form, ZeroGrad::zero_form, ZeroGrad::never}) {
    // The oracle: one rank, plain libtorch.
    const auto alone = make_net(1);
    torch::optim::Adam reference(alone->parameters(), 0.01);
    for (int step = 0; step < 50; ++step) {
      reference.zero_grad();
      at::Tensor loss = torch::zeros({}, torch::kDouble);
      for (int row = 0; row < 4; ++row) {
        loss =
            loss + torch::mse_loss(alone->forward(input_of(step, row)), target_of(step, row)) / 4;
      }
      loss.backward();
      reference.step();
    }
    run_ranks(4, [&](auto communicator) {
      // Different initial weights: rank 0's count.
      const auto net = make_net(communicator->rank() == 0 ? 1 : 100);
      torch::optim::Adam optimizer(net->parameters(), 0.01);
      DataParallel parallel(*net, *communicator, {},
                            {.bucket_bytes = 512, .first_bucket_bytes = 64});
      for (int step = 0; step < 50; ++step) {
        zero(optimizer, form);
        const int row = communicator->rank();
        torch::mse_loss(net->forward(input_of(step, row)), target_of(step, row)).backward();
        EXPECT_TRUE(parallel.finish().committed());
        optimizer.step();
      }
      const auto expected = weights_of(*alone);
      const auto got = weights_of(*net);
      for (std::size_t i = 0; i < got.size(); ++i) {
        EXPECT_TRUE(got[i].allclose(expected[i], 1e-10, 1e-10));
      }
    });
  }
}

TEST(DataParallel, AccumulationEqualsOneLargeBatch) {
  run_ranks(2, [&](auto communicator) {
    const auto a = make_net(1);
    const auto b = make_net(1);
    DataParallel parallel_a(*a, *communicator);
    for (int row = 0; row < 2; ++row) {
      const auto backward = [&] {
        (torch::mse_loss(a->forward(input_of(0, row)), target_of(0, row)) / 2).backward();
      };
      if (row == 0) {
        const auto hold = parallel_a.accumulate();
        backward();
      } else {
        backward();
      }
    }
    parallel_a.finish();
    DataParallel parallel_b(*b, *communicator);
    torch::mse_loss(b->forward(torch::cat({input_of(0, 0), input_of(0, 1)})),
                    torch::cat({target_of(0, 0), target_of(0, 1)}))
        .backward();
    parallel_b.finish();
    for (std::size_t i = 0; i < a->parameters().size(); ++i) {
      EXPECT_EQ(a->parameters()[i].grad().defined(), b->parameters()[i].grad().defined());
      if (!a->parameters()[i].grad().defined()) continue;  // unused
      EXPECT_TRUE(a->parameters()[i].grad().allclose(b->parameters()[i].grad(), 1e-12, 1e-14));
    }
  });
}

// The whole attach loop with Adam: a NaN or Inf on one rank skips the same step on all of them;
// weights, residuals and Adam's own state stay byte-equal; training goes on.
TEST(DataParallel, ANonFiniteGradientMovesNothingWithAdam) {
  const double bad_values[] = {std::numeric_limits<double>::quiet_NaN(),
                               std::numeric_limits<double>::infinity(),
                               -std::numeric_limits<double>::infinity()};
  for (const auto& compression :
       {CompressionOptions{}, CompressionOptions{Sign{8}}, CompressionOptions{Quantize{4, 32}},
        CompressionOptions{TopK{0.1, 32}, {.kind = FeedbackKind::econtrol}},
        CompressionOptions{PowerSgd{.matrix_approximation_rank = 1}}}) {
    for (const ZeroGrad form : {ZeroGrad::none_form, ZeroGrad::zero_form, ZeroGrad::never}) {
      run_ranks(3, [&](auto communicator) {
        const auto net = make_net(1);
        torch::optim::Adam optimizer(net->parameters(), 0.01);
        DataParallel parallel(*net, *communicator, compression,
                              {.bucket_bytes = 512, .first_bucket_bytes = 64});
        const auto step = [&](int number, double bad) {
          zero(optimizer, form);
          at::Tensor x = input_of(number, communicator->rank());
          if (communicator->rank() == 1) x = x + bad;
          torch::mse_loss(net->forward(x), target_of(number, 0)).backward();
          const Verdict verdict = parallel.finish();
          optimizer.step();
          return verdict.committed();
        };
        const auto adam_state = [&] {
          std::vector<at::Tensor> state;
          for (const auto& parameter : net->parameters()) {
            const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
            if (found == optimizer.state().end()) continue;
            const auto& adam = static_cast<torch::optim::AdamParamState&>(*found->second);
            state.push_back(adam.exp_avg().clone());
            state.push_back(adam.exp_avg_sq().clone());
            state.push_back(torch::tensor(adam.step()));
          }
          return state;
        };
        ASSERT_TRUE(step(0, 0));
        int number = 1;
        for (const double bad : bad_values) {
          for (int i = 0; i < 2; ++i) ASSERT_TRUE(step(number++, 0));
          const auto weights = weights_of(*net);
          const auto adam = adam_state();
          const auto skipped = parallel.skipped();
          const auto show = [&](testing::Snapshot& snapshot) {
            parallel.visit(snapshot);
            snapshot.counters.clear();
          };
          testing::Snapshot before;
          show(before);
          EXPECT_FALSE(step(number++, bad));
          testing::Snapshot after;
          show(after);
          EXPECT_TRUE(before == after);
          EXPECT_EQ(parallel.skipped(), skipped + 1);
          const auto weights_after = weights_of(*net);
          const auto adam_after = adam_state();
          ASSERT_EQ(adam.size(), adam_after.size());
          for (std::size_t i = 0; i < adam.size(); ++i) EXPECT_TRUE(adam[i].equal(adam_after[i]));
          for (std::size_t i = 0; i < weights.size(); ++i) {
            EXPECT_TRUE(weights[i].equal(weights_after[i]));
          }
          EXPECT_TRUE(step(number++, 0));
          EXPECT_FALSE(weights_of(*net)[0].equal(weights[0]));
        }
      });
    }
  }
}

// Dense steps give the exact mean; the fourth committed one is compressed, whatever was skipped.
TEST(DataParallel, CompressionStartsAfterItsCommittedSteps) {
  run_ranks(2, [&](auto communicator) {
    const auto net = make_net(1);
    CompressionOptions options{Sign{8}};
    options.start_iter = 3;
    auto parallel = std::make_unique<DataParallel>(*net, *communicator, options);
    const auto weight_gradient = [&](int step, int row) {
      const auto alone = make_net(1);
      torch::mse_loss(alone->forward(input_of(step, row)), target_of(step, row)).backward();
      return alone->first->weight.grad().clone();
    };
    testing::Snapshot saved;
    for (int step = 0; step < 6; ++step) {
      const int row = communicator->rank();
      at::Tensor x = input_of(step, row);
      if (step == 1) x = x + std::numeric_limits<double>::quiet_NaN();
      torch::mse_loss(net->forward(x), target_of(step, row)).backward();
      EXPECT_EQ(parallel->finish().committed(), step != 1);
      if (step == 1) continue;
      const at::Tensor mean = (weight_gradient(step, 0) + weight_gradient(step, 1)) / 2;
      EXPECT_EQ(net->first->weight.grad().allclose(mean, 1e-12, 1e-14), step < 4) << step;
      if (step != 2) continue;
      // A new object that takes over the counters goes on where the old one was.
      parallel->visit(saved);
      parallel.reset();  // a parameter belongs to one object at a time
      parallel = std::make_unique<DataParallel>(*net, *communicator, options);
      struct Restore final : StateVisitor {
        explicit Restore(const testing::Snapshot& snapshot) : from(snapshot) {}
        void tensor(const StateEntry&) override {}
        void counter(const std::string& name, std::int64_t& value) override {
          for (const auto& [known, old] : from.counters) {
            if (known == name) value = old;
          }
        }
        const testing::Snapshot& from;
      } restore(saved);
      parallel->visit(restore);
    }
  });
}

TEST(DataParallel, TellsWhatIsCompressedAndWhy) {
  run_ranks(2, [&](auto communicator) {
    const auto net = make_net(1);
    CompressionOptions options{Quantize{1, 32}};
    options.start_iter = 3;
    options.policy = {.dense_below = 40, .dense_names = {"first.*", "third.*"}};
    const auto lines = DataParallel(*net, *communicator, options).describe_compression();
    using ::testing::HasSubstr;
    // first.weight by its name, second.weight, unused.weight by its size, three vectors.
    EXPECT_THAT(lines, ::testing::UnorderedElementsAre(
                           HasSubstr("1 tensors, 96 values: uncompressed: name matches 'first.*'"),
                           HasSubstr("1 tensors, 48 values: 1 bit"),
                           HasSubstr("1 tensors, 4 values: uncompressed: below 40 values"),
                           HasSubstr("3 tensors, 21 values: uncompressed: a vector"),
                           HasSubstr("from step 4 on"),
                           "warning: no parameter's name matches 'third.*' of dense_names; correct "
                           "it or leave it out",
                           HasSubstr("warning: compressor quantize: with 1 bit")));
  });
}

// Two backward passes in a step are learnt from the first ones; where a second one is new it comes
// too late.
TEST(DataParallel, ASecondBackwardIsAddedUntilGradientsAreSentEarly) {
  run_ranks(1, [](auto communicator) {
    const auto net = make_net(1);
    DataParallel parallel(*net, *communicator, {}, {.bucket_bytes = 64, .first_bucket_bytes = 64});
    const auto backward = [&] {
      torch::mse_loss(net->forward(input_of(0, 0)), target_of(0, 0)).backward();
    };
    backward();
    parallel.finish();
    const at::Tensor once = net->first->weight.grad().clone();
    backward();
    backward();
    parallel.finish();
    EXPECT_TRUE(net->first->weight.grad().equal(2 * once));
    const auto other = make_net(1);
    DataParallel used_once(*other, *communicator, {},
                           {.bucket_bytes = 64, .first_bucket_bytes = 64});
    const auto backward_of_other = [&] {
      torch::mse_loss(other->forward(input_of(0, 0)), target_of(0, 0)).backward();
    };
    for (int step = 0; step < 2; ++step) {
      backward_of_other();
      used_once.finish();
    }
    backward_of_other();
    EXPECT_THROW(backward_of_other(), UsageError);
    used_once.finish();
  });
}

TEST(DataParallel, ParametersOfSeveralDtypesTrainTogether) {
  run_ranks(2, [](auto communicator) {
    const auto net = make_net(1, at::kFloat);
    net->first->to(at::kBFloat16);
    torch::optim::SGD optimizer(net->parameters(), 0.1);
    DataParallel parallel(*net, *communicator, {Sign{8}});
    double first = 0;
    double last = 0;
    for (int step = 0; step < 30; ++step) {
      optimizer.zero_grad();
      const at::Tensor x = input_of(0, communicator->rank()).to(at::kBFloat16);
      const at::Tensor hidden = torch::tanh(net->first(x)).to(at::kFloat);
      const at::Tensor loss = torch::mse_loss(net->second(hidden), target_of(0, 0).to(at::kFloat));
      loss.backward();
      EXPECT_EQ(net->first->weight.grad().scalar_type(), at::kFloat);
      EXPECT_TRUE(parallel.finish().committed());
      optimizer.step();
      (step == 0 ? first : last) = loss.item<double>();
    }
    EXPECT_LT(last, first / 2);
  });
}

TEST(DataParallel, TiedWeightsAreReducedOnce) {
  struct Tied : torch::nn::Module {
    Tied() {
      weight = register_parameter("weight", torch::ones({4, 4}));
      register_parameter("same", weight);
    }
    at::Tensor weight;
  };
  run_ranks(2, [](auto communicator) {
    Tied net;
    ASSERT_EQ(parameters_of(net).size(), 1u);
    DataParallel parallel(net, *communicator);
    (net.weight.sum() * (1.0 + communicator->rank())).backward();
    parallel.finish();
    EXPECT_TRUE(net.weight.grad().equal(torch::full({4, 4}, 1.5f)));
  });
}

TEST(DataParallel, ARolledBackStepKeepsTheRunningStatistics) {
  run_ranks(2, [](auto communicator) {
    torch::nn::BatchNorm1d norm(3);
    DataParallel parallel(*norm, *communicator);
    const auto step = [&](double bad) {
      at::Tensor x = torch::sin(torch::arange(24, torch::kFloat)).view({8, 3});
      if (communicator->rank() == 1) x = x + bad;
      norm->forward(x).square().sum().backward();
      return parallel.finish().committed();
    };
    EXPECT_TRUE(step(0));
    const at::Tensor mean = norm->running_mean.clone();
    EXPECT_FALSE(step(std::numeric_limits<double>::quiet_NaN()));
    EXPECT_TRUE(norm->running_mean.equal(mean));
    EXPECT_EQ(norm->num_batches_tracked.item<std::int64_t>(), 1);
    EXPECT_TRUE(step(0));
    EXPECT_FALSE(norm->running_mean.equal(mean));
  });
}

TEST(DataParallel, AParameterFrozenFromTheStartTrainsOnceItThaws) {
  run_ranks(2, [](auto communicator) {
    const auto net = make_net(1);
    net->first->weight.set_requires_grad(false);
    DataParallel parallel(*net, *communicator, {Sign{8}});
    const auto step = [&] {
      torch::mse_loss(net->forward(input_of(0, communicator->rank())), target_of(0, 0)).backward();
      EXPECT_TRUE(parallel.finish().committed());
    };
    step();
    EXPECT_FALSE(net->first->weight.grad().defined());
    net->first->weight.set_requires_grad(true);
    step();
    ASSERT_TRUE(net->first->weight.grad().defined());
    EXPECT_GT(net->first->weight.grad().abs().max().item<double>(), 0);
  });
}

TEST(DataParallel, DifferentFrozenParametersAreAnErrorOnEveryRank) {
  std::atomic<int> thrown{0};
  EXPECT_THROW(
      run_ranks(2,
                [&](auto communicator) {
                  const auto net = make_net(1);
                  if (communicator->rank() == 1) net->first->bias.set_requires_grad(false);
                  DataParallel parallel(*net, *communicator, {Sign{8}});
                  torch::mse_loss(net->forward(input_of(0, 0)), target_of(0, 0)).backward();
                  try {
                    parallel.finish();
                  } catch (const Error&) {
                    ++thrown;
                    throw;
                  }
                }),
      RanksDisagree);
  EXPECT_EQ(thrown, 2);
}

TEST(DataParallel, HooksAreGoneWithTheObject) {
  run_ranks(1, [](auto communicator) {
    const auto net = make_net(1);
    { DataParallel parallel(*net, *communicator); }
    torch::mse_loss(net->forward(input_of(0, 0)), target_of(0, 0)).backward();
    torch::mse_loss(net->forward(input_of(0, 0)), target_of(0, 0)).backward();
    EXPECT_TRUE(net->first->weight.grad().defined());
  });
}

}  // namespace
}  // namespace thinwire
