#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <mutex>
#include <string>
#include <vector>

#include "collectives/base/error.h"
#include "collectives/threads/thread_communicator.h"
#include "examples/models/gpt.h"
#include "examples/models/initialize.h"
#include "examples/models/models.h"
#include "runtime/data/load.h"
#include "runtime/data_parallel.h"

namespace thinwire {
namespace {

using testing::HasSubstr;

constexpr std::int64_t kContext = 12;
constexpr std::int64_t kVocabulary = 20;

Model small_gpt(double dropout = 0) {
  const Model model = make_model("gpt:layers=2,heads=2,width=8,dropout=" + std::to_string(dropout),
                                 {kContext}, kVocabulary);
  initialize_parameters(*model.module, 3);
  const torch::NoGradGuard no_grad;
  // At the initial scale the blocks hardly matter.
  for (auto& parameter : model.module->parameters()) parameter.mul_(10);
  model.module->to(at::kDouble);
  return model;
}

at::Tensor some_tokens(std::int64_t rows, std::int64_t length = kContext) {
  return (torch::arange(rows * length) * 7 + 3).remainder(kVocabulary).view({rows, length});
}

at::Tensor loss_of(const at::Tensor& logits, const at::Tensor& tokens) {
  return torch::cross_entropy_loss(logits.flatten(0, 1), tokens.roll(-1, 1).flatten());
}

std::string usage_message(const std::string& spec, const std::vector<std::int64_t>& shape) {
  try {
    make_model(spec, shape, kVocabulary);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no UsageError";
}

TEST(GptTest, HasTheParametersOfItsArchitecture) {
  const Model model = make_model("gpt:layers=3,heads=2,width=16", {32}, 100);
  std::int64_t count = 0;
  for (const auto& parameter : model.module->parameters()) count += parameter.numel();
  const std::int64_t w = 16;
  const std::int64_t block =
      4 * w + (w + 1) * 3 * w + (w + 1) * w + (w + 1) * 4 * w + 4 * w * w + w;
  EXPECT_EQ(count, (100 + 32) * w + 3 * block + 2 * w);
  EXPECT_THAT(model.module->named_parameters().keys(),
              testing::IsSupersetOf({"wte.weight", "wpe.weight", "h.0.ln_1.weight", "h.2.qkv.bias",
                                     "h.1.attn_proj.weight", "h.1.mlp_proj.weight", "ln_f.bias"}));
}

TEST(GptTest, TakesInputsUpToItsContext) {
  const Model model = small_gpt();
  EXPECT_THAT(model.forward(some_tokens(3)).sizes(),
              testing::ElementsAre(3, kContext, kVocabulary));
  EXPECT_THAT(model.forward(some_tokens(2, 5)).sizes(), testing::ElementsAre(2, 5, kVocabulary));
  EXPECT_THROW(model.forward(some_tokens(2, kContext + 1)), Bug);
}

TEST(GptTest, ATokenChangesNoLogitsBeforeIt) {
  const torch::NoGradGuard no_grad;
  const Model model = small_gpt();
  const at::Tensor tokens = some_tokens(1);
  const at::Tensor before = model.forward(tokens);
  for (std::int64_t place = 0; place < kContext; ++place) {
    at::Tensor other = tokens.clone();
    other[0][place] = (other[0][place] + 1).remainder(kVocabulary);
    const at::Tensor after = model.forward(other);
    EXPECT_TRUE(after.narrow(1, 0, place).equal(before.narrow(1, 0, place))) << place;
    for (std::int64_t later = place; later < kContext; ++later) {
      EXPECT_FALSE(after[0][later].equal(before[0][later])) << place << " " << later;
    }
  }
}

// Rows of a batch know nothing of each other.
TEST(GptTest, ARowDependsOnItselfOnly) {
  const torch::NoGradGuard no_grad;
  const Model model = small_gpt();
  const at::Tensor tokens = some_tokens(4);
  const at::Tensor all = model.forward(tokens);
  for (std::int64_t row = 0; row < 4; ++row) {
    EXPECT_TRUE(torch::allclose(model.forward(tokens.narrow(0, row, 1)), all.narrow(0, row, 1),
                                1e-12, 1e-12));
  }
}

// A slope by finite differences moves the matrix where it embeds and where it puts out.
TEST(GptTest, TheTiedGradientIsThatOfBothUses) {
  const Model model = small_gpt();
  const at::Tensor tokens = some_tokens(2);
  at::Tensor matrix = model.module->named_parameters()["wte.weight"];
  loss_of(model.forward(tokens), tokens).backward();
  const torch::NoGradGuard no_grad;
  for (const auto& [row, column] : {std::pair{3, 0}, {17, 5}, {10, 7}}) {
    constexpr double kStep = 1e-5;
    const auto loss_at = [&](double shift) {
      matrix[row][column] += shift;
      const double loss = loss_of(model.forward(tokens), tokens).item<double>();
      matrix[row][column] -= shift;
      return loss;
    };
    const double slope = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
    EXPECT_NEAR(matrix.grad()[row][column].item<double>(), slope, 1e-6);
    EXPECT_GT(std::abs(slope), 1e-4) << "a slope that shows nothing";
  }
}

// The matrix is one parameter that autograd reaches twice: the bucket must wait for both.
TEST(GptTest, BucketsSendTheTiedGradientOnceAndWhole) {
  const at::Tensor tokens = some_tokens(4);
  const Model alone = small_gpt();
  loss_of(alone.forward(tokens), tokens).backward();
  const auto expected = alone.module->named_parameters();
  run_ranks(2, [&](std::unique_ptr<Communicator> communicator) {
    const Model model = small_gpt();
    DataParallel parallel(*model.module, *communicator, {}, {.bucket_bytes = 1000});
    const at::Tensor mine = tokens.narrow(0, 2 * communicator->rank(), 2);
    loss_of(model.forward(mine), mine).backward();
    EXPECT_TRUE(parallel.finish().committed());
    for (const auto& item : model.module->named_parameters()) {
      EXPECT_TRUE(torch::allclose(item.value().grad(), expected[item.key()].grad(), 1e-10, 1e-12))
          << item.key();
    }
  });
}

TEST(GptTest, InitialisesAsGpt2) {
  const Model model = make_model("gpt:layers=8,heads=4,width=64", {128}, 100);
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : model.module->parameters()) parameter.fill_(std::nan(""));
  }
  initialize_parameters(*model.module, 5);
  for (const auto& item : model.module->named_parameters()) {
    const std::string& name = item.key();
    const at::Tensor value = item.value().detach().to(at::kDouble);
    if (value.dim() < 2) {
      const bool bias = name.ends_with("bias");
      EXPECT_TRUE(value.equal(at::full_like(value, bias ? 0 : 1))) << name;
      continue;
    }
    const double deviation = name.ends_with("_proj.weight") ? .02 / 4 : .02;
    const auto n = static_cast<double>(value.numel());
    // Mean, variance and fourth moment of a normal, each within six sigma of its estimate.
    const at::Tensor z = value / deviation;
    EXPECT_NEAR(z.mean().item<double>(), 0, 6 / std::sqrt(n)) << name;
    EXPECT_NEAR(z.square().mean().item<double>(), 1, 6 * std::sqrt(2 / n)) << name;
    EXPECT_NEAR(z.pow(4).mean().item<double>(), 3, 6 * std::sqrt(96 / n)) << name;
  }
}

TEST(GptTest, DropsWhileTrainingOnlyAndByPass) {
  const torch::NoGradGuard no_grad;
  const Model with = small_gpt(0.5);
  const Model without = small_gpt(0);
  const at::Tensor tokens = some_tokens(3);
  const at::Tensor plain = without.forward(tokens);
  const auto trained = [&](const ForwardPass& pass) {
    begin_forward(*with.module, pass);
    return with.forward(tokens);
  };
  EXPECT_THROW(with.forward(tokens), Bug) << "no pass was begun";
  const ForwardPass pass{.seed = 4, .step = 10, .rank = 1, .micro_batch = 2};
  const at::Tensor first = trained(pass);
  EXPECT_FALSE(first.equal(plain));
  for (const ForwardPass& other :
       {ForwardPass{.seed = 5, .step = 10, .rank = 1, .micro_batch = 2},
        ForwardPass{.seed = 4, .step = 11, .rank = 1, .micro_batch = 2},
        ForwardPass{.seed = 4, .step = 10, .rank = 0, .micro_batch = 2},
        ForwardPass{.seed = 4, .step = 10, .rank = 1, .micro_batch = 1}}) {
    EXPECT_FALSE(trained(other).equal(first));
  }
  EXPECT_TRUE(trained(pass).equal(first));
  with.module->eval();
  EXPECT_TRUE(with.forward(tokens).equal(plain));
}

TEST(GptTest, RefusesWhatItCannotBuild) {
  EXPECT_THAT(usage_message("gpt:heads=3", {8}), HasSubstr("multiple of the heads"));
  EXPECT_THAT(usage_message("gpt", {1, 28, 28}), HasSubstr("--data text"));
  EXPECT_THAT(usage_message("gpt:layer=3", {8}), HasSubstr("did you mean 'layers'"));
  EXPECT_THAT(usage_message("gpt:dropout=1", {8}), HasSubstr("dropout"));
  const auto images = load_data("synthetic:samples=8,test_samples=8,size=4").train;
  EXPECT_THAT([&] { make_model("gpt", *images); }, testing::Throws<UsageError>());
  EXPECT_NO_THROW(make_model("mlp", *images));
}

}  // namespace
}  // namespace thinwire
