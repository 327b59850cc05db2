#include "runtime/trainer/precision.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "collectives/base/error.h"
#include "examples/models/initialize.h"
#include "examples/models/models.h"

namespace thinwire {
namespace {

TEST(PrecisionTest, ComputesProductsInBf16WhileAliveOnly) {
  const at::Tensor x = at::ones({4, 4});
  EXPECT_EQ(at::matmul(x, x).scalar_type(), at::kFloat);
  {
    const ComputeIn scope(Precision::bf16, at::kCPU);
    EXPECT_EQ(at::matmul(x, x).scalar_type(), at::kBFloat16);
    {
      const ComputeIn inner(Precision::fp32, at::kCPU);
      EXPECT_EQ(at::matmul(x, x).scalar_type(), at::kFloat);
    }
    EXPECT_EQ(at::matmul(x, x).scalar_type(), at::kBFloat16);
  }
  EXPECT_EQ(at::matmul(x, x).scalar_type(), at::kFloat);
}

// 1 + 2^-9 is no bfloat16; as a weight it is rounded for the product and kept in the parameter.
TEST(PrecisionTest, RoundsForTheProductAndKeepsTheParameter) {
  torch::nn::Linear linear(torch::nn::LinearOptions(1, 1).bias(false));
  const torch::NoGradGuard no_grad;
  linear->weight.fill_(1 + 0x1p-9);
  {
    const ComputeIn scope(Precision::bf16, at::kCPU);
    EXPECT_EQ(linear->forward(at::ones({1, 1})).item<float>(), 1);
  }
  EXPECT_EQ(linear->weight.item<float>(), 1 + 0x1p-9f);
  EXPECT_EQ(linear->forward(at::ones({1, 1})).item<float>(), 1 + 0x1p-9f);
}

// A cast of a weight that outlived its scope would be that of the step before. (A linear layer on
// the CPU keeps none; a plain product does.)
TEST(PrecisionTest, SeesWeightsThatChanged) {
  at::Tensor weight = at::ones({1, 1}).requires_grad_();
  for (const float value : {2.F, 3.F}) {
    {
      const torch::NoGradGuard no_grad;
      weight.fill_(value);
    }
    const ComputeIn scope(Precision::bf16, at::kCPU);
    EXPECT_EQ(at::matmul(at::ones({1, 1}), weight).item<float>(), value);
  }
}

TEST(PrecisionTest, GivesGradientsOfTheParametersTypeNearThoseOfFp32) {
  for (const char* spec : {"gpt:layers=2,heads=2,width=32,dropout=0", "mlp:hidden=32"}) {
    const bool text = std::string(spec).starts_with("gpt");
    const Model model = make_model(
        spec, text ? std::vector<std::int64_t>{16} : std::vector<std::int64_t>{1, 4, 4}, 20);
    initialize_parameters(*model.module, 1);
    const at::Tensor input = text ? (torch::arange(64) * 7).remainder(20).view({4, 16})
                                  : torch::sin(torch::arange(64.F)).view({4, 1, 4, 4});
    const at::Tensor target = torch::arange(text ? 64 : 4).remainder(20);
    const auto gradients = [&](Precision precision) {
      model.module->zero_grad();
      at::Tensor loss;
      {
        const ComputeIn scope(precision, at::kCPU);
        loss = torch::cross_entropy_loss(model.forward(input).flatten(0, -2), target);
      }
      EXPECT_EQ(loss.scalar_type(), at::kFloat);
      loss.backward();
      std::vector<at::Tensor> result{loss.detach().view({1})};
      for (const auto& parameter : model.module->parameters()) {
        EXPECT_EQ(parameter.grad().scalar_type(), at::kFloat);
        result.push_back(parameter.grad().flatten().clone());
      }
      return at::cat(result);
    };
    const at::Tensor exact = gradients(Precision::fp32);
    const at::Tensor rounded = gradients(Precision::bf16);
    EXPECT_FALSE(rounded.equal(exact)) << spec;
    // bfloat16 has 8 bits.
    EXPECT_LT(((rounded - exact).norm() / exact.norm()).item<double>(), 0.02) << spec;
  }
}

TEST(PrecisionTest, IsAWord) {
  EXPECT_EQ(parse_precision("fp32"), Precision::fp32);
  EXPECT_EQ(parse_precision("bf16"), Precision::bf16);
  EXPECT_THAT([] { parse_precision("bf6"); },
              testing::ThrowsMessage<UsageError>(testing::HasSubstr("did you mean 'bf16'")));
}

}  // namespace
}  // namespace thinwire
