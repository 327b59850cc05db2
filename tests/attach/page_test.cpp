// What docs/attach.md says, and neither the suite nor a program shows.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <limits>

#include "collectives/threads/thread_communicator.h"
#include "runtime/data_parallel.h"

namespace thinwire {
namespace {

at::Tensor weight() {
  return torch::zeros({32, 32}, torch::kDouble).set_requires_grad(true);
}

double first(const at::Tensor& tensor) {
  return tensor.flatten()[0].item<double>();
}

// A discriminator takes two steps, then a generator's loss goes through it, and so on: what it
// sends.
std::int64_t bytes_sent(Communicator& ranks,
                        const std::function<void(DataParallel&, const at::Tensor&)>& of_generator) {
  at::Tensor discriminator = weight();
  DataParallel parallel({{"discriminator", discriminator}}, ranks);
  for (int step = 0; step < 12; ++step) {
    discriminator.mutable_grad() = at::Tensor();
    discriminator.sum().backward();
    EXPECT_TRUE(parallel.finish().committed());
    EXPECT_EQ(first(discriminator.grad()), 1);
    if (step % 2 == 1 && step < 11) of_generator(parallel, discriminator);
  }
  return parallel.traffic().bytes_sent;
}

TEST(Page, IgnoredGradientsAreNotSent) {
  run_ranks(2, [](auto ranks) {
    const auto plain = bytes_sent(*ranks, [](DataParallel&, const at::Tensor&) {});
    const auto ignored = bytes_sent(*ranks, [](DataParallel& parallel, const at::Tensor& through) {
      const auto others = parallel.ignore();
      (through.sum() * 1000).backward();
    });
    const auto dropped = bytes_sent(*ranks, [](DataParallel&, const at::Tensor& through) {
      (through.sum() * 1000).backward();
    });
    EXPECT_EQ(ignored, plain);
    // Once, until it is learnt that another gradient comes.
    EXPECT_GT(dropped, plain + 32 * 32 * 8);
    EXPECT_LT(dropped, plain + 2 * 32 * 32 * 8);
  });
}

TEST(Page, TheFirstTwoStepsOnlyCount) {
  run_ranks(2, [](auto ranks) {
    at::Tensor a = weight();
    DataParallel parallel({{"a", a}}, *ranks);
    for (int step = 0; step < 2; ++step) {
      a.sum().backward();
      a.mutable_grad().mul_(3);
      EXPECT_TRUE(parallel.finish().committed());
      EXPECT_EQ(first(a.grad()), 3);
    }
    // Then they are in flight.
    a.sum().backward();
    EXPECT_TRUE(a.grad().isnan().all().item<bool>());
    EXPECT_THROW(a.mutable_grad().mul_(3), c10::Error);
    EXPECT_TRUE(parallel.finish().committed());
    EXPECT_EQ(first(a.grad()), 1);
  });
}

TEST(Page, NaNOnOneRankMovesNothing) {
  run_ranks(2, [](auto ranks) {
    at::Tensor a = weight();
    torch::optim::AdamW optimizer({a}, torch::optim::AdamWOptions(0.1).weight_decay(0.1));
    DataParallel parallel({{"a", a}}, *ranks);
    const auto step = [&](double scale) {
      (a.sum() * scale).backward();
      const bool committed = parallel.finish().committed();
      EXPECT_EQ(a.grad().defined(), committed);
      optimizer.step();
      return committed;
    };
    EXPECT_TRUE(step(1));
    const double before = first(a);
    EXPECT_FALSE(step(ranks->rank() == 1 ? std::numeric_limits<double>::quiet_NaN() : 1));
    EXPECT_EQ(first(a), before);
    EXPECT_TRUE(step(1));
    EXPECT_NE(first(a), before);
  });
}

TEST(Page, AveragedBuffersAreTheMeanOverRanks) {
  run_ranks(2, [](auto ranks) {
    torch::nn::BatchNorm1d norm(torch::nn::BatchNorm1dOptions(3).momentum(1.0));
    DataParallel parallel(*norm, *ranks);
    norm->forward(torch::full({4, 3}, 1.0F + 2.0F * static_cast<float>(ranks->rank())))
        .sum()
        .backward();
    EXPECT_TRUE(parallel.finish().committed());
    EXPECT_EQ(norm->running_mean[0].item<float>(), ranks->rank() == 0 ? 1 : 3);
    parallel.average_buffers();
    EXPECT_EQ(norm->running_mean[0].item<float>(), 2);
  });
}

}  // namespace
}  // namespace thinwire
