#include "tests/attach/suite.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdlib>
#include <filesystem>
#include <limits>

#include "collectives/base/error.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "runtime/data_parallel.h"

namespace thinwire::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

at::Tensor weight(std::vector<std::int64_t> shape, double value = 0) {
  return torch::full(shape, value, torch::kDouble).set_requires_grad(true);
}

// The mean over ranks of 1 + rank.
double mean_rank(const Communicator& ranks) {
  return (ranks.size() + 1) / 2.0;
}

double first(const at::Tensor& tensor) {
  return tensor.flatten()[0].item<double>();
}

// What `body` throws; empty if it does not.
template <typename Kind, typename Body>
std::string thrown(const Body& body) {
  try {
    body();
  } catch (const Kind& error) {
    return error.what();
  }
  return {};
}

// --- 1. Ranks are compared at construction -------------------------------------------------------

void ranks_that_gave_different_things_are_told(Communicator& ranks) {
  const bool last = ranks.rank() == ranks.size() - 1;
  const std::string odd = fmt::format("(rank {})", ranks.size() - 1);
  const auto message = [&](std::vector<Parameter> parameters, CompressionOptions compression = {},
                           DataParallelOptions options = {}) {
    return thrown<ConfigurationMismatch>([&] {
      DataParallel(std::move(parameters), ranks, std::move(compression), std::move(options));
    });
  };
  const Parameter a{"a", weight({4, 4})};
  const Parameter b{"b", weight({4, 4})};
  EXPECT_THAT(message(last ? std::vector{b, a} : std::vector{a, b}),
              AllOf(HasSubstr("parameters"), HasSubstr("a: "), HasSubstr("b: "), HasSubstr(odd)));
  const auto format = last ? torch::MemoryFormat::ChannelsLast : torch::MemoryFormat::Contiguous;
  const at::Tensor kernel =
      torch::zeros({2, 3, 5, 5}).to(torch::kFloat, false, true, format).set_requires_grad(true);
  EXPECT_THAT(message({{"conv", kernel}}), AllOf(HasSubstr("conv: "), HasSubstr(odd)));
  EXPECT_THAT(message({{"w", last ? weight({8, 2}) : weight({2, 8})}}),
              AllOf(HasSubstr("w: "), HasSubstr("8 x 2"), HasSubstr("2 x 8"), HasSubstr(odd)));
  EXPECT_THAT(message({{"w", last ? weight({4}) : weight({5})}}), HasSubstr(odd));
  EXPECT_THAT(message({{"w", last ? weight({4}) : torch::zeros({4}).set_requires_grad(true)}}),
              AllOf(HasSubstr("Double"), HasSubstr("Float"), HasSubstr(odd)));
  EXPECT_THAT(message({a}, last ? CompressionOptions{Sign{}} : CompressionOptions{}),
              AllOf(HasSubstr("coding"), HasSubstr(odd)));
  EXPECT_THAT(message({a}, last ? CompressionOptions{Sign{8}} : CompressionOptions{Sign{16}}),
              AllOf(HasSubstr("coding"), HasSubstr(odd)));
  const PowerSgd cold{.warm_start = false};
  EXPECT_THAT(message({a}, last ? CompressionOptions{cold} : CompressionOptions{PowerSgd{}}),
              AllOf(HasSubstr("warm_start"), HasSubstr(odd)));
  EXPECT_THAT(message({a}, {}, {.bucket_bytes = last ? 64 : 128}),
              AllOf(HasSubstr("bucket_bytes"), HasSubstr(odd)));
  EXPECT_EQ(message({a, b}), "");
}

void replicas_that_part_are_found(Communicator& ranks) {
  at::Tensor w = weight({4, 4});
  DataParallel parallel({{"w", w}}, ranks, {}, {.check_every = 3});
  const auto step = [&] {
    w.square().sum().backward();
    parallel.finish();
  };
  step();
  if (ranks.rank() == 1) {
    const torch::NoGradGuard no_grad;
    w.add_(1);
  }
  step();
  EXPECT_THAT(thrown<RanksDisagree>(step), HasSubstr("parameter w"));
}

// --- 2. Every user of a communicator has a group of its own --------------------------------------

void two_models_and_one_backward(Communicator& ranks) {
  at::Tensor a = weight({16, 16});
  at::Tensor b = weight({16, 16});
  DataParallel first_model({{"a", a}}, ranks);
  DataParallel second_model({{"b", b}}, ranks);
  for (int round = 0; round < 30; ++round) {
    const double scale = 1.0 + ranks.rank();
    (scale * a.sum() + 100 * scale * b.sum()).backward();
    if (round % 2 == 0) {
      first_model.finish();
      second_model.finish();
    } else {
      second_model.finish();
      first_model.finish();
    }
    ASSERT_EQ(first(a.grad()), mean_rank(ranks)) << round;
    ASSERT_EQ(first(b.grad()), 100 * mean_rank(ranks)) << round;
  }
}

void collectives_of_the_user_between_backward_and_finish(Communicator& ranks) {
  at::Tensor a = weight({16, 16});
  DataParallel parallel({{"a", a}}, ranks, {Sign{8}});
  for (int round = 0; round < 10; ++round) {
    (a.sum() * (1.0 + ranks.rank())).backward();
    EXPECT_EQ(all_reduce_sum(ranks, {1.0}).front(), ranks.size());
    EXPECT_EQ(parallel.mean(ranks.rank()), (ranks.size() - 1) / 2.0);
    EXPECT_TRUE(parallel.finish().committed());
    EXPECT_NEAR(first(a.grad()), mean_rank(ranks), 1e-12);
  }
}

// A generator learns through a discriminator that is not frozen; the oracle is one rank with the
// mean of the ranks' losses.
enum class ZeroGrad { none, zeros };

std::vector<double> train_gan(ZeroGrad form, int critics, const std::vector<int>& samples,
                              Communicator* ranks) {
  at::Tensor generator = weight({2, 2}, 0.5);
  at::Tensor discriminator = weight({2, 2}, 0.25);
  torch::optim::SGD of_generator({generator}, 0.05);
  torch::optim::SGD of_discriminator({discriminator}, 0.05);
  std::unique_ptr<DataParallel> g, d;
  if (ranks) {
    g = std::make_unique<DataParallel>(std::vector<Parameter>{{"g", generator}}, *ranks);
    d = std::make_unique<DataParallel>(std::vector<Parameter>{{"d", discriminator}}, *ranks);
  }
  const bool to_none = form == ZeroGrad::none;
  const auto mean_over = [&](auto loss_of) {
    at::Tensor loss = torch::zeros({}, torch::kDouble);
    for (const int sample : samples) {
      loss = loss + loss_of(torch::full({2, 2}, 1.0 + sample, torch::kDouble));
    }
    return loss / static_cast<double>(samples.size());
  };
  for (int round = 0; round < 8; ++round) {
    for (int i = 0; i < critics; ++i) {
      of_discriminator.zero_grad(to_none);
      mean_over([&](const at::Tensor& x) {
        return (discriminator.matmul(x) - discriminator.matmul(generator.detach())).tanh().sum();
      }).backward();
      if (d) d->finish();
      of_discriminator.step();
    }
    of_generator.zero_grad(to_none);
    mean_over([&](const at::Tensor& x) {
      return discriminator.matmul(generator).sub(x).square().sum();
    }).backward();
    if (g) g->finish();
    of_generator.step();
  }
  return {first(generator), first(discriminator)};
}

void a_generator_learns_through_an_unfrozen_discriminator(Communicator& ranks) {
  std::vector<int> all;
  for (int rank = 0; rank < ranks.size(); ++rank) all.push_back(rank);
  for (const auto& [form, critics] : std::vector<std::pair<ZeroGrad, int>>{
           {ZeroGrad::none, 1}, {ZeroGrad::zeros, 1}, {ZeroGrad::none, 5}}) {
    const auto expected = train_gan(form, critics, all, nullptr);
    const auto got = train_gan(form, critics, {ranks.rank()}, &ranks);
    EXPECT_NEAR(got[0], expected[0], 1e-12) << critics;
    EXPECT_NEAR(got[1], expected[1], 1e-12) << critics;
  }
}

void a_shared_encoder_with_two_heads(Communicator& ranks) {
  at::Tensor encoder = weight({4, 4});
  at::Tensor head_a = weight({4, 4});
  at::Tensor head_b = weight({4, 4});
  DataParallel of_encoder({{"encoder", encoder}}, ranks);
  DataParallel of_a({{"a", head_a}}, ranks);
  DataParallel of_b({{"b", head_b}}, ranks);
  for (int round = 0; round < 8; ++round) {
    const double scale = 1.0 + ranks.rank();
    (scale * (encoder.sum() + head_a.sum())).backward();
    of_a.finish();
    (scale * (10 * encoder.sum() + head_b.sum())).backward();
    of_b.finish();
    of_encoder.finish();
    ASSERT_EQ(first(encoder.grad()), 11 * mean_rank(ranks)) << round;
    ASSERT_EQ(first(head_a.grad()), mean_rank(ranks));
    ASSERT_EQ(first(head_b.grad()), mean_rank(ranks));
  }
}

void what_is_ignored_is_another_model_s(Communicator& ranks) {
  at::Tensor a = weight({4, 4});
  DataParallel parallel({{"a", a}}, ranks);
  for (int round = 0; round < 5; ++round) {
    (a.sum() * (1.0 + ranks.rank())).backward();
    {
      const auto outer = parallel.ignore();
      const auto inner = parallel.ignore();
      (a.sum() * 1000).backward();
    }
    parallel.finish();
    EXPECT_EQ(first(a.grad()), mean_rank(ranks));
    const auto ignored = parallel.ignore();
    (a.sum() * 1000).backward();
    EXPECT_EQ(first(a.grad()), mean_rank(ranks));
  }
}

void a_parameter_belongs_to_one_object(Communicator& ranks) {
  at::Tensor a = weight({4, 4});
  {
    DataParallel parallel({{"a", a}}, ranks);
    EXPECT_THAT(thrown<UsageError>([&] {
                  DataParallel({{"other", a}}, ranks);
                }),
                HasSubstr("other"));
  }
  DataParallel again({{"a", a}}, ranks);
}

// --- 3. Asked for is not arrived -----------------------------------------------------------------

void gradients_that_are_asked_for_have_no_effect(Communicator& ranks) {
  at::Tensor a = weight({4, 4}, 2);
  DataParallel parallel({{"a", a}}, ranks);
  for (int round = 0; round < 5; ++round) {
    const at::Tensor loss = a.sum() * (1.0 + ranks.rank());
    if (round > 0) torch::autograd::grad({a.square().sum()}, {a});
    loss.backward();
    torch::autograd::grad({a.square().sum()}, {a}, {}, true, true);
    parallel.finish();
    if (ranks.rank() == 0) torch::autograd::grad({a.square().sum()}, {a});
    EXPECT_EQ(first(a.grad()), mean_rank(ranks));
  }
}

// --- 4. finish() knows what is new ---------------------------------------------------------------

void a_finish_without_anything_new_is_an_error_on_all_ranks(Communicator& ranks) {
  at::Tensor a = weight({4, 4});
  DataParallel parallel({{"a", a}}, ranks);
  const auto good_step = [&] {
    (a.sum() * (1.0 + ranks.rank())).backward();
    EXPECT_TRUE(parallel.finish().committed());
    EXPECT_EQ(first(a.grad()), mean_rank(ranks));
  };
  for (int round = 0; round < 4; ++round) {
    good_step();
    // On all ranks.
    EXPECT_THAT(thrown<AgreedError>([&] { parallel.finish(); }),
                AllOf(HasSubstr("rank"), HasSubstr("without a new gradient")));
    EXPECT_FALSE(a.grad().defined());
    good_step();
    // On rank 1 alone, which finds the others in their next step.
    EXPECT_THAT(thrown<AgreedError>([&] {
                  if (ranks.rank() != 1) a.sum().backward();
                  parallel.finish();
                }),
                HasSubstr("rank 1 called finish() without a new gradient"));
    EXPECT_FALSE(a.grad().defined());
  }
  EXPECT_EQ(parallel.skipped(), 8);
}

void gradients_set_by_hand_are_reduced_as_they_are(Communicator& ranks) {
  at::Tensor a = weight({4, 4});
  at::Tensor b = weight({3});
  DataParallel parallel({{"a", a}, {"b", b}}, ranks);
  const double scale = 1.0 + ranks.rank();
  for (int round = 0; round < 5; ++round) {
    a.mutable_grad() = torch::full({4, 4}, scale, torch::kDouble);
    b.mutable_grad() = torch::full({3}, 2 * scale, torch::kDouble);
    EXPECT_TRUE(parallel.finish().committed());
    EXPECT_EQ(first(a.grad()), mean_rank(ranks));
    EXPECT_EQ(first(b.grad()), 2 * mean_rank(ranks));
    // Beside one that arrives.
    a.mutable_grad() = torch::full({4, 4}, 3 * scale, torch::kDouble);
    (b.sum() * scale).backward();
    EXPECT_TRUE(parallel.finish().committed());
    EXPECT_EQ(first(a.grad()), 3 * mean_rank(ranks));
    EXPECT_EQ(first(b.grad()), mean_rank(ranks));
  }
}

void what_was_sent_cannot_be_changed_without_a_word(Communicator& ranks) {
  at::Tensor a = weight({4, 4});
  DataParallel parallel({{"a", a}}, ranks);
  for (int round = 0; round < 3; ++round) {
    a.sum().backward();
    parallel.finish();
  }
  a.sum().backward();
  // What is in flight shows as NaN, and cannot be clipped or changed in place.
  EXPECT_TRUE(a.grad().isnan().all().item<bool>());
  EXPECT_THROW(a.mutable_grad().mul_(2), c10::Error);
  EXPECT_THROW(torch::nn::utils::clip_grad_norm_({a}, 1.0), c10::Error);
  if (ranks.rank() == 0) a.mutable_grad() = torch::ones({4, 4}, torch::kDouble);
  if (ranks.rank() == 0) {
    EXPECT_THAT(thrown<UsageError>([&] { parallel.finish(); }), HasSubstr("gradient of a"));
  } else {
    EXPECT_THAT(parallel.finish().abandoned.value_or(""), HasSubstr("gradient of a"));
  }
  EXPECT_FALSE(a.grad().defined());
}

void what_was_sent_cannot_be_dropped_without_a_word(Communicator& ranks) {
  at::Tensor a = weight({4, 4});
  at::Tensor b = weight({4, 4});
  DataParallel parallel({{"a", a}, {"b", b}}, ranks, {},
                        {.bucket_bytes = 64, .first_bucket_bytes = 64});
  const auto backward = [&] { ((a + b).sum() * (1.0 + ranks.rank())).backward(); };
  for (int round = 0; round < 3; ++round) {
    backward();
    parallel.finish();
  }
  // One of two: neither the step with it nor the one without it is what was asked for.
  backward();
  a.mutable_grad() = at::Tensor();
  EXPECT_THAT(thrown<UsageError>([&] { parallel.finish(); }), HasSubstr("dropped"));
  // One of two, and then another gradient of it: the other one would be lost.
  backward();
  a.mutable_grad() = at::Tensor();
  EXPECT_THAT(thrown<UsageError>([&] { a.sum().backward(); }), HasSubstr("another gradient of b"));
  EXPECT_FALSE(parallel.abandon("start anew").committed());
  // Both: the step begins anew.
  backward();
  a.mutable_grad() = at::Tensor();
  b.mutable_grad() = at::Tensor();
  backward();
  EXPECT_TRUE(parallel.finish().committed());
  EXPECT_EQ(first(a.grad()), mean_rank(ranks));
  EXPECT_EQ(first(b.grad()), mean_rank(ranks));
}

// --- 5. abandon() --------------------------------------------------------------------------------

void an_abandoned_step_is_rolled_back_everywhere(Communicator& ranks) {
  at::Tensor a = weight({16, 16});
  at::Tensor b = weight({16, 16});
  DataParallel parallel({{"a", a}, {"b", b}}, ranks, {Sign{8}},
                        {.bucket_bytes = 64, .first_bucket_bytes = 64});
  const auto good_step = [&] {
    ((a + b).sum() * (1.0 + ranks.rank())).backward();
    EXPECT_TRUE(parallel.finish().committed());
    EXPECT_NEAR(first(a.grad()), mean_rank(ranks), 1e-12);
  };
  for (int round = 0; round < 3; ++round) {
    good_step();
    // One rank's backward throws in the middle.
    if (ranks.rank() == 1) {
      const at::Tensor cursed = a * 1;
      cursed.register_hook([](at::Tensor) -> at::Tensor { throw std::runtime_error("cursed"); });
      EXPECT_THROW((cursed.sum() + b.sum()).backward(), std::exception);
      EXPECT_EQ(parallel.abandon("backward failed").abandoned, "rank 1: backward failed");
    } else {
      (a + b).sum().backward();
      EXPECT_EQ(parallel.finish().abandoned, "rank 1: backward failed");
    }
    EXPECT_FALSE(a.grad().defined());
    EXPECT_FALSE(b.grad().defined());
    good_step();
    // All of them, before any gradient.
    EXPECT_FALSE(parallel.abandon("no batch").committed());
  }
  good_step();
}

// --- 6. What no rank used does not move ----------------------------------------------------------

void what_no_rank_used_does_not_move(Communicator& ranks) {
  at::Tensor used = weight({8, 8}, 1);
  at::Tensor on_one_rank = weight({8, 8}, 1);
  at::Tensor unused = weight({8, 8}, 1);
  torch::optim::AdamW optimizer({used, on_one_rank, unused},
                                torch::optim::AdamWOptions(0.1).weight_decay(0.1));
  for (const auto& compression : {CompressionOptions{}, CompressionOptions{Sign{8}}}) {
    DataParallel parallel({{"used", used}, {"on_one_rank", on_one_rank}, {"unused", unused}}, ranks,
                          compression);
    for (int step = 0; step < 10; ++step) {
      optimizer.zero_grad();
      at::Tensor loss = used.sum();
      if (ranks.rank() == 1) loss = loss + ranks.size() * on_one_rank.sum();
      loss.backward();
      EXPECT_TRUE(parallel.finish().committed());
      ASSERT_TRUE(on_one_rank.grad().defined());
      EXPECT_NEAR(first(on_one_rank.grad()), 1, 1e-9);
      EXPECT_FALSE(unused.grad().defined());
      optimizer.step();
    }
  }
  EXPECT_EQ(first(unused), 1);
  EXPECT_NE(first(on_one_rank), 1);
}

// --- 7. One rank leaves, is late, or does more ---------------------------------------------------

void ranks_with_fewer_steps_join(Communicator& ranks) {
  at::Tensor a = weight({4, 4});
  torch::optim::SGD optimizer({a}, 1.0);
  DataParallel parallel({{"a", a}}, ranks, {}, {.check_every = 1});
  const int steps = 3 + 2 * ranks.rank();
  double expected = 0;
  for (int step = 0; step < 3 + 2 * (ranks.size() - 1); ++step) {
    for (int rank = 0; rank < ranks.size(); ++rank) {
      if (step < 3 + 2 * rank) expected -= 1.0 / ranks.size();
    }
  }
  for (int step = 0; step < steps; ++step) {
    a.sum().backward();
    EXPECT_TRUE(parallel.finish().committed());
    optimizer.step();
  }
  parallel.join([&](const Verdict&) { optimizer.step(); });
  EXPECT_NEAR(first(a), expected, 1e-12);
  // And everybody goes on.
  a.sum().backward();
  EXPECT_TRUE(parallel.finish().committed());
}

void a_rank_that_leaves_is_missed_at_once(Communicator& ranks) {
  at::Tensor a = weight({4, 4});
  const auto start = std::chrono::steady_clock::now();
  {
    DataParallel parallel({{"a", a}}, ranks);
    a.sum().backward();
    parallel.finish();
    if (ranks.rank() != 1) {
      EXPECT_THAT(thrown<PeerLost>([&] {
                    a.sum().backward();
                    parallel.finish();
                  }),
                  HasSubstr("rank 1 left"));
    }
  }
  // The group's timeout is a minute.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  EXPECT_EQ(all_reduce_sum(ranks, {1.0}).front(), ranks.size());
}

void rank_zero_may_be_busy_for_long(Communicator& ranks) {
  at::Tensor a = weight({4, 4});
  DataParallel parallel({{"a", a}}, ranks);
  a.sum().backward();
  parallel.finish();
  int ran = 0;
  // The group's timeout is four seconds.
  parallel.on_rank_zero([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(4600));
    ++ran;
  });
  EXPECT_EQ(ran, ranks.rank() == 0 ? 1 : 0);
  EXPECT_THAT(thrown<std::exception>(
                  [&] { parallel.on_rank_zero([] { throw DataError("no such file; look"); }); }),
              HasSubstr("no such file; look"));
  a.sum().backward();
  EXPECT_TRUE(parallel.finish().committed());
}

// --- 12. ... -------------------------------------------------------------------------------------

void batches_of_unequal_size_weigh_by_their_samples(Communicator& ranks) {
  at::Tensor a = weight({4, 4});
  DataParallel parallel({{"a", a}}, ranks);
  for (int round = 0; round < 5; ++round) {
    // Rank 0 has three samples of gradient 1, rank 1 one of 5, the others none.
    const int samples = ranks.rank() == 0 ? 3 : ranks.rank() == 1 ? 1 : 0;
    if (samples > 0) (a.sum() * (ranks.rank() == 0 ? 1.0 : 5.0)).backward();
    EXPECT_TRUE(parallel.finish(samples).committed());
    EXPECT_NEAR(first(a.grad()), 2.0, 1e-12);
  }
  // A rank that forgets them is told, and so are the others.
  (a.sum()).backward();
  if (ranks.rank() == 0) {
    EXPECT_THAT(thrown<UsageError>([&] { parallel.finish(); }), HasSubstr("finish(samples)"));
  } else {
    EXPECT_THAT(parallel.finish(1).abandoned.value_or(""), HasSubstr("finish(samples)"));
  }
}

void ranks_that_weigh_differently_are_told(Communicator& ranks) {
  at::Tensor a = weight({4, 4});
  DataParallel parallel({{"a", a}}, ranks);
  a.sum().backward();
  EXPECT_THAT(
      thrown<AgreedError>([&] { ranks.rank() == 0 ? parallel.finish(2) : parallel.finish(); }),
      HasSubstr("rank 0 called finish(samples)"));
}

void micro_batches_are_accumulated_in_any_form(Communicator& ranks) {
  at::Tensor a = weight({4, 4});
  DataParallel parallel({{"a", a}}, ranks);
  const auto backward = [&] { (a.sum() * (1.0 + ranks.rank())).backward(); };
  for (int round = 0; round < 4; ++round) {
    {
      const auto outer = parallel.accumulate();
      {
        const auto inner = parallel.accumulate();
        backward();
      }
      backward();
    }
    backward();
    parallel.finish();
    EXPECT_EQ(first(a.grad()), 3 * mean_rank(ranks));
    // zero_grad() in between drops what came before.
    {
      const auto hold = parallel.accumulate();
      backward();
    }
    a.mutable_grad() = at::Tensor();
    backward();
    parallel.finish();
    EXPECT_EQ(first(a.grad()), mean_rank(ranks));
    (a.square().sum() + a.sum()).backward({}, true, /*create_graph=*/true);
    parallel.finish();
    EXPECT_EQ(first(a.grad()), 1);
  }
}

void buffers_that_the_user_changes_are_his(Communicator& ranks) {
  struct Net : torch::nn::Module {
    Net() {
      norm = register_module("norm", torch::nn::BatchNorm1d(3));
      temperature = register_buffer("temperature", torch::ones({1}));
      seen = register_buffer("seen", torch::zeros({3}));
    }
    torch::nn::BatchNorm1d norm{nullptr};
    at::Tensor temperature, seen;
  } net;
  DataParallel parallel(net, ranks);
  const auto step = [&](double bad) {
    at::Tensor x = torch::sin(torch::arange(24, torch::kFloat)).view({8, 3});
    if (ranks.rank() == 1) x = x + bad;
    {
      const torch::NoGradGuard no_grad;
      net.seen.add_(x.mean(0));
    }
    net.norm->forward(x).square().sum().backward();
    return parallel.finish().committed();
  };
  EXPECT_TRUE(step(0));
  {
    const torch::NoGradGuard no_grad;
    net.temperature.fill_(0.5);
  }
  const at::Tensor mean = net.norm->running_mean.clone();
  EXPECT_FALSE(step(kNan));
  EXPECT_EQ(net.temperature.item<float>(), 0.5F);
  EXPECT_TRUE(net.norm->running_mean.equal(mean));
  EXPECT_TRUE(net.seen.isfinite().all().item<bool>());
}

void what_cannot_be_trained_is_said_by_name(Communicator& ranks) {
  struct Net : torch::nn::Module {};
  EXPECT_THAT(thrown<UsageError>([&] { DataParallel(Net(), ranks); }), HasSubstr("no parameters"));
  const at::Tensor complex = torch::zeros({2}, torch::kComplexFloat).set_requires_grad(true);
  EXPECT_THAT(thrown<UsageError>([&] {
                DataParallel({{"spectrum", complex}}, ranks);
              }),
              AllOf(HasSubstr("spectrum"), HasSubstr("no gradients travel")));
  Net expanded;
  expanded.register_parameter("w", torch::zeros({2}));
  expanded.register_buffer("grid", torch::zeros({1}).expand({4}));
  EXPECT_THAT(thrown<UsageError>([&] { DataParallel(expanded, ranks); }),
              AllOf(HasSubstr("buffer grid"), HasSubstr("expanded")));
  // A frozen parameter of whole numbers is not trained, but becomes rank 0's.
  const at::Tensor whole = torch::full({3}, 7 + ranks.rank(), torch::kLong);
  at::Tensor w = weight({2});
  DataParallel parallel({{"table", whole}, {"w", w}}, ranks);
  EXPECT_EQ(whole[0].item<std::int64_t>(), 7);
  w.sum().backward();
  EXPECT_TRUE(parallel.finish().committed());
}

// --- Checkpoints ---------------------------------------------------------------------------------

// A folder that all ranks know and that is gone afterwards.
class SharedFolder {
 public:
  explicit SharedFolder(Communicator& ranks) : ranks_(ranks) {
    std::string mine;
    if (ranks.rank() == 0) {
      mine = (std::filesystem::temp_directory_path() / "thinwire-attach-XXXXXX").string();
      EXPECT_NE(::mkdtemp(mine.data()), nullptr);
    }
    path_ = broadcast_text(ranks, mine, 0);
  }
  ~SharedFolder() {
    ranks_.barrier()->wait();
    if (ranks_.rank() == 0) std::filesystem::remove_all(path_);
  }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  Communicator& ranks_;
  std::string path_;
};

void a_run_goes_on_from_its_checkpoint(Communicator& ranks) {
  const SharedFolder folder(ranks);
  struct Run {
    explicit Run(Communicator& group)
        : net(torch::nn::Linear(6, 4), torch::nn::BatchNorm1d(4)),
          parallel((net->to(torch::kDouble), *net), group, {Sign{8}}),
          optimizer(net->parameters(), 0.01) {}
    void step(int number, int rank) {
      optimizer.zero_grad();
      const at::Tensor x =
          torch::sin(torch::arange(48, torch::kDouble) * (rank + 2) + number).view({8, 6});
      net->forward(x).pow(3).mean().backward();
      EXPECT_TRUE(parallel.finish().committed());
      optimizer.step();
    }
    std::vector<at::Tensor> weights() const {
      std::vector<at::Tensor> all;
      for (const auto& parameter : net->parameters()) all.push_back(parameter.detach().clone());
      return all;
    }
    torch::nn::Sequential net;
    DataParallel parallel;
    torch::optim::Adam optimizer;
  };
  {
    Run fresh(ranks);
    EXPECT_EQ(fresh.parallel.load(folder.path(), fresh.optimizer), std::nullopt);
  }
  std::vector<at::Tensor> expected;
  {
    Run run(ranks);
    for (int number = 0; number < 4; ++number) run.step(number, ranks.rank());
    EXPECT_TRUE(run.parallel.save(folder.path(), 4, run.optimizer).complete);
    for (int number = 4; number < 8; ++number) run.step(number, ranks.rank());
    expected = run.weights();
    // In the middle of a step there is nothing to save.
    run.net->forward(torch::zeros({8, 6}, torch::kDouble)).mean().backward();
    EXPECT_THAT(thrown<UsageError>(
                    [&] { static_cast<void>(run.parallel.save(folder.path(), 8, run.optimizer)); }),
                HasSubstr("finish()"));
    run.parallel.finish();
  }
  Run run(ranks);
  EXPECT_EQ(run.parallel.load(folder.path(), run.optimizer), 4);
  for (int number = 4; number < 8; ++number) run.step(number, ranks.rank());
  const auto got = run.weights();
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(got[i].equal(expected[i])) << i;
  // Another model's checkpoint is no checkpoint of this one.
  at::Tensor other = weight({3, 3});
  torch::optim::SGD of_other({other}, 0.1);
  DataParallel parallel({{"other", other}}, ranks);
  EXPECT_THAT(thrown<DataError>([&] { parallel.load(folder.path(), of_other); }),
              HasSubstr("other"));
}

// --- 9. Frozen parameters ------------------------------------------------------------------------

void frozen_parameters_are_not_sent(Communicator& ranks) {
  at::Tensor frozen = weight({200, 200});
  at::Tensor live = weight({10});
  DataParallel parallel({{"frozen", frozen}, {"live", live}}, ranks);
  const auto sent_in_ten_steps = [&] {
    const auto before = parallel.traffic().bytes_sent;
    for (int step = 0; step < 10; ++step) {
      at::Tensor loss = live.sum();
      if (frozen.requires_grad()) loss = loss + frozen.sum();
      loss.backward();
      EXPECT_TRUE(parallel.finish().committed());
    }
    return parallel.traffic().bytes_sent - before;
  };
  EXPECT_GT(sent_in_ten_steps(), 10 * 40'000 * 8 / 2);
  frozen.set_requires_grad(false);
  EXPECT_LT(sent_in_ten_steps(), 10 * 500 * ranks.size());
}

void values_beyond_fp16_are_warned_of(Communicator& ranks) {
  at::Tensor w = weight({16, 16});
  std::string said;
  DataParallel parallel({{"big.weight", w}}, ranks, {Cast{Half::fp16}},
                        {.warn = [&](const std::string& text) { said += text; }});
  (w.sum() * 1e5).backward();
  EXPECT_TRUE(parallel.finish().committed());
  EXPECT_THAT(said, HasSubstr("big.weight"));
}

// Sends everything as it is, and counts its steps.
class OwnReducer final : public GradientReducer {
 public:
  explicit OwnReducer(int& steps) : steps_(steps), inner_(make_reducer({})) {}
  void prepare(const Bucket& bucket, int rank, int size) override {
    inner_->prepare(bucket, rank, size);
  }
  void require_possible(const Bucket& bucket, const Layout& layout) const override {
    inner_->require_possible(bucket, layout);
  }
  void relayout(const Bucket& bucket) override { inner_->relayout(bucket); }
  void stage(Bucket& bucket, Communicator& communicator, const StepContext& step) override {
    inner_->stage(bucket, communicator, step);
  }
  void settle(Communicator& communicator) override {
    ++steps_;
    inner_->settle(communicator);
  }
  std::optional<std::string> non_finite(const Bucket& bucket) override {
    return inner_->non_finite(bucket);
  }
  void show_estimate(const Bucket& bucket, Bucket& view) override {
    inner_->show_estimate(bucket, view);
  }
  void commit(Bucket& bucket) override { inner_->commit(bucket); }
  void rollback(Bucket& bucket) override { inner_->rollback(bucket); }
  void visit(const Bucket& bucket, StateVisitor& visitor) override {
    inner_->visit(bucket, visitor);
  }
  std::vector<SlicePlan> plan(const Bucket& bucket) const override { return inner_->plan(bucket); }

 private:
  int& steps_;
  std::unique_ptr<GradientReducer> inner_;
};

void a_reducer_of_the_user_s_own_is_used(Communicator& ranks) {
  torch::nn::Linear net(3, 2);
  int steps = 0;
  DataParallel parallel(std::make_unique<OwnReducer>(steps), *net, ranks);
  for (int step = 0; step < 3; ++step) {
    (net->forward(torch::ones({1, 3})).sum() * (1.0 + ranks.rank())).backward();
    EXPECT_TRUE(parallel.finish().committed());
    EXPECT_NEAR(net->bias.grad()[0].item<double>(), mean_rank(ranks), 1e-6);
  }
  EXPECT_EQ(steps, 3);
}

// --- 10. Closures --------------------------------------------------------------------------------

void lbfgs_takes_the_same_steps_on_every_rank(Communicator& ranks) {
  const auto train = [](const std::vector<int>& mine, Communicator* group) {
    at::Tensor w = weight({6}, 0);
    torch::optim::LBFGS optimizer(
        {w}, torch::optim::LBFGSOptions(1).max_iter(30).line_search_fn("strong_wolfe"));
    std::unique_ptr<DataParallel> parallel;
    if (group) parallel = std::make_unique<DataParallel>(std::vector<Parameter>{{"w", w}}, *group);
    const auto closure = [&] {
      optimizer.zero_grad();
      at::Tensor loss = torch::zeros({}, torch::kDouble);
      for (const int rank : mine) {
        const at::Tensor target = torch::arange(6, torch::kDouble) * (rank + 1);
        const at::Tensor scale = torch::arange(1, 7, torch::kDouble) + rank;
        loss = loss + (scale * (w - target).square()).sum() / static_cast<double>(mine.size());
      }
      loss.backward();
      return loss;
    };
    if (parallel) {
      parallel->step(optimizer, closure);
    } else {
      optimizer.step(closure);
    }
    return w.detach().clone();
  };
  std::vector<int> all;
  for (int rank = 0; rank < ranks.size(); ++rank) all.push_back(rank);
  EXPECT_TRUE(train({ranks.rank()}, &ranks).allclose(train(all, nullptr), 1e-9, 1e-9));
  // An evaluation that is rolled back is no point to go on from.
  at::Tensor bad = weight({6});
  DataParallel of_bad({{"bad", bad}}, ranks);
  torch::optim::LBFGS on_bad({bad});
  EXPECT_THAT(thrown<AgreedError>([&] {
                of_bad.step(on_bad, [&] {
                  const at::Tensor loss = (bad * (ranks.rank() == 1 ? kNan : 1.0)).sum();
                  loss.backward();
                  return loss;
                });
              }),
              HasSubstr("rolled back"));
  at::Tensor w = weight({8, 8});
  std::string said;
  DataParallel lossy({{"w", w}}, ranks, {Sign{8}},
                     {.warn = [&](const std::string& text) { said = text; }});
  torch::optim::LBFGS optimizer({w});
  lossy.step(optimizer, [&] {
    optimizer.zero_grad();
    const at::Tensor loss = w.sum();
    loss.backward();
    return loss;
  });
  EXPECT_EQ(said.empty(), ranks.rank() != 0);
}

}  // namespace

const std::vector<AttachTest>& attach_tests() {
#define THINWIRE_CASE(name)               \
  AttachTest {                            \
#name, name, std::chrono::seconds(60) \
  }
  static const std::vector<AttachTest> tests = {
      THINWIRE_CASE(ranks_that_gave_different_things_are_told),
      THINWIRE_CASE(replicas_that_part_are_found),
      THINWIRE_CASE(two_models_and_one_backward),
      THINWIRE_CASE(collectives_of_the_user_between_backward_and_finish),
      THINWIRE_CASE(a_generator_learns_through_an_unfrozen_discriminator),
      THINWIRE_CASE(a_shared_encoder_with_two_heads),
      THINWIRE_CASE(what_is_ignored_is_another_model_s),
      THINWIRE_CASE(a_parameter_belongs_to_one_object),
      THINWIRE_CASE(gradients_that_are_asked_for_have_no_effect),
      THINWIRE_CASE(a_finish_without_anything_new_is_an_error_on_all_ranks),
      THINWIRE_CASE(gradients_set_by_hand_are_reduced_as_they_are),
      THINWIRE_CASE(what_was_sent_cannot_be_changed_without_a_word),
      THINWIRE_CASE(what_was_sent_cannot_be_dropped_without_a_word),
      THINWIRE_CASE(an_abandoned_step_is_rolled_back_everywhere),
      THINWIRE_CASE(what_no_rank_used_does_not_move),
      THINWIRE_CASE(a_rank_that_leaves_is_missed_at_once),
      THINWIRE_CASE(ranks_with_fewer_steps_join),
      {"rank_zero_may_be_busy_for_long", rank_zero_may_be_busy_for_long, std::chrono::seconds(4)},
      THINWIRE_CASE(batches_of_unequal_size_weigh_by_their_samples),
      THINWIRE_CASE(ranks_that_weigh_differently_are_told),
      THINWIRE_CASE(micro_batches_are_accumulated_in_any_form),
      THINWIRE_CASE(buffers_that_the_user_changes_are_his),
      THINWIRE_CASE(what_cannot_be_trained_is_said_by_name),
      THINWIRE_CASE(frozen_parameters_are_not_sent),
      THINWIRE_CASE(values_beyond_fp16_are_warned_of),
      THINWIRE_CASE(a_reducer_of_the_user_s_own_is_used),
      THINWIRE_CASE(a_run_goes_on_from_its_checkpoint),
      THINWIRE_CASE(lbfgs_takes_the_same_steps_on_every_rank),
  };
#undef THINWIRE_CASE
  return tests;
}

}  // namespace thinwire::testing
