#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "collectives/base/error.h"
#include "examples/models/initialize.h"
#include "examples/models/models.h"

namespace thinwire {
namespace {

// A convolution, a norm and a linear layer, registered in the order of `names`.
class Parts : public torch::nn::Module {
 public:
  explicit Parts(const std::vector<std::string>& names) {
    for (const auto& name : names) {
      if (name == "conv") {
        register_module(name, torch::nn::Conv2d(torch::nn::Conv2dOptions(32, 64, 3)));
      } else if (name == "norm") {
        register_module(name, torch::nn::BatchNorm2d(64));
      } else {
        register_module(name, torch::nn::Linear(500, 300));
      }
    }
  }
};

void expect_equal_parameters(const torch::nn::Module& a, const torch::nn::Module& b) {
  const auto of_b = b.named_parameters();
  ASSERT_EQ(a.named_parameters().size(), of_b.size());
  for (const auto& item : a.named_parameters()) {
    EXPECT_TRUE(torch::equal(item.value(), of_b[item.key()])) << item.key();
  }
}

TEST(InitializeTest, DoesNotDependOnTheOrderOfConstruction) {
  Parts forward({"conv", "norm", "linear"});
  Parts backward({"linear", "norm", "conv"});
  initialize_parameters(forward, 7);
  initialize_parameters(backward, 7);
  expect_equal_parameters(forward, backward);
}

TEST(InitializeTest, DoesNotDependOnLibtorchsGenerator) {
  torch::manual_seed(1);
  Parts first({"conv", "norm", "linear"});
  initialize_parameters(first, 7);
  torch::manual_seed(2);
  Parts second({"conv", "norm", "linear"});
  initialize_parameters(second, 7);
  expect_equal_parameters(first, second);
}

TEST(InitializeTest, DependsOnSeedAndName) {
  Parts one({"linear", "linear2"});
  Parts two({"linear"});
  initialize_parameters(one, 1);
  initialize_parameters(two, 2);
  const auto p = one.named_parameters();
  EXPECT_FALSE(torch::equal(p["linear.weight"], two.named_parameters()["linear.weight"]));
  EXPECT_FALSE(torch::equal(p["linear.weight"], p["linear2.weight"]));
}

// Uniform in +-bound: mean 0 and variance bound^2 / 3, each within six sigma of its estimate.
void expect_uniform(const at::Tensor& tensor, double bound) {
  const at::Tensor x = tensor.detach().to(at::kDouble);
  const auto n = static_cast<double>(x.numel());
  EXPECT_LE(x.abs().max().item<double>(), bound);
  EXPECT_GT(x.abs().max().item<double>(), bound * (1 - 20 / n));
  EXPECT_NEAR(x.mean().item<double>(), 0, 6 * bound / std::sqrt(3 * n));
  EXPECT_NEAR(x.square().mean().item<double>(), bound * bound / 3,
              6 * bound * bound * std::sqrt(4. / 45 / n));
}

TEST(InitializeTest, HasTorchsDistributions) {
  Parts parts({"conv", "norm", "linear"});
  const auto p = parts.named_parameters();
  {
    const torch::NoGradGuard no_grad;
    for (const auto& item : p) item.value().fill_(std::nan(""));
  }
  initialize_parameters(parts, 3);
  expect_uniform(p["conv.weight"], 1 / std::sqrt(32 * 9));
  expect_uniform(p["conv.bias"], 1 / std::sqrt(32 * 9));
  expect_uniform(p["linear.weight"], 1 / std::sqrt(500));
  expect_uniform(p["linear.bias"], 1 / std::sqrt(500));
  EXPECT_TRUE(torch::equal(p["norm.weight"], torch::ones(64)));
  EXPECT_TRUE(torch::equal(p["norm.bias"], torch::zeros(64)));
  EXPECT_TRUE(p["conv.weight"].requires_grad());
}

// The values for float64 are those for float32 before rounding.
TEST(InitializeTest, RoundsOnceToTheParametersType) {
  Parts narrow({"linear"});
  Parts wide({"linear"});
  wide.to(at::kDouble);
  initialize_parameters(narrow, 3);
  initialize_parameters(wide, 3);
  EXPECT_TRUE(torch::equal(wide.named_parameters()["linear.weight"].to(at::kFloat),
                           narrow.named_parameters()["linear.weight"]));
}

TEST(InitializeTest, InitialisesAModuleThatIsOneLayer) {
  torch::nn::Linear linear(400, 20);
  initialize_parameters(*linear, 3);
  expect_uniform(linear->weight, 1 / std::sqrt(400));
}

TEST(InitializeTest, RefusesAVectorItHasNoRuleFor) {
  torch::nn::Module module;
  module.register_parameter("scale", torch::ones(3));
  EXPECT_THROW(initialize_parameters(module, 1), Bug);
}

TEST(InitializeTest, IsTheSameInThreadsAtOnce) {
  std::vector<Model> models(4);
  std::vector<std::thread> threads;
  for (Model& model : models) {
    threads.emplace_back([&model] {
      model = make_model("resnet8", {3, 32, 32}, 10);
      initialize_parameters(*model.module, 5);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Model& model : models) expect_equal_parameters(*models[0].module, *model.module);
}

}  // namespace
}  // namespace thinwire
