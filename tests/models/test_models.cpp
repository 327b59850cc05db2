#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <string>
#include <vector>

#include "collectives/base/error.h"
#include "examples/models/models.h"

namespace thinwire {
namespace {

using testing::HasSubstr;
using Shape = std::vector<std::int64_t>;

std::int64_t parameter_count(const Model& model) {
  std::int64_t count = 0;
  for (const auto& parameter : model.module->parameters()) count += parameter.numel();
  return count;
}

std::vector<std::string> parameter_names(const Model& model) {
  return model.module->named_parameters().keys();
}

std::string usage_message(const std::string& spec, const Shape& shape = {1, 28, 28}) {
  try {
    make_model(spec, shape, 10);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no UsageError";
}

struct Count {
  std::string spec;
  Shape shape;
  std::int64_t parameters;
};

// Sums written out layer by layer, or the published number.
TEST(ModelTest, HasTheParametersOfItsArchitecture) {
  const std::vector<Count> counts{
      {"mlp", {1, 28, 28}, (784 + 1) * 256 + (256 + 1) * 10},
      {"mlp:hidden=64,32", {3, 5, 7}, (105 + 1) * 64 + (64 + 1) * 32 + (32 + 1) * 10},
      {"convnet",
       {1, 28, 28},
       (9 + 1) * 32 + (32 * 9 + 1) * 32 + (32 * 49 + 1) * 128 + (128 + 1) * 10},
      {"convnet",
       {3, 32, 30},
       (27 + 1) * 32 + (32 * 9 + 1) * 32 + (32 * 8 * 7 + 1) * 128 + (128 + 1) * 10},
      {"resnet8",
       {3, 32, 32},
       27 * 16 + 32 + 2 * (144 * 16 + 32) + (144 * 32 + 64) + (288 * 32 + 64) + (16 * 32 + 64) +
           (288 * 64 + 128) + (576 * 64 + 128) + (32 * 64 + 128) + 65 * 10},
      {"resnet18", {3, 32, 32}, 11'173'962}};
  for (const auto& [spec, shape, parameters] : counts) {
    EXPECT_EQ(parameter_count(make_model(spec, shape, 10)), parameters) << spec;
  }
}

TEST(ModelTest, GivesOneLogitPerClassWhateverTheImage) {
  for (const char* spec : {"mlp", "convnet", "resnet8", "resnet18"}) {
    for (const Shape& shape : {Shape{1, 28, 28}, Shape{3, 32, 32}, Shape{2, 9, 5}}) {
      const Model model = make_model(spec, shape, 7);
      const at::Tensor input = at::ones({3, shape[0], shape[1], shape[2]});
      EXPECT_THAT(model.forward(input).sizes(), testing::ElementsAre(3, 7)) << spec;
    }
  }
}

TEST(ModelTest, PassesAGradientToEveryParameter) {
  for (const char* spec : {"mlp:hidden=8,8", "convnet", "resnet8", "resnet18"}) {
    torch::manual_seed(1);
    const Model model = make_model(spec, {1, 12, 12}, 10);
    model.module->to(at::kDouble);
    torch::cross_entropy_loss(model.forward(at::randn({4, 1, 12, 12}, at::kDouble)),
                              torch::tensor({0, 1, 2, 3}))
        .backward();
    for (const auto& item : model.module->named_parameters()) {
      ASSERT_TRUE(item.value().grad().defined()) << item.key();
      EXPECT_GT(item.value().grad().abs().sum().item<double>(), 0) << item.key();
    }
  }
}

// Against the formula written with functions on the parameters, looked up by name.
TEST(ModelTest, ConvNetComputesItsFormula) {
  torch::manual_seed(1);
  const Model model = make_model("convnet", {1, 28, 28}, 10);
  model.module->to(at::kDouble);
  const auto p = model.module->named_parameters();
  const at::Tensor input = at::randn({2, 1, 28, 28}, at::kDouble);
  const auto block = [&](const at::Tensor& x, const std::string& name) {
    return torch::max_pool2d(torch::conv2d(x, p[name + ".weight"], p[name + ".bias"], 1, 1).relu(),
                             2);
  };
  const at::Tensor features = block(block(input, "conv1"), "conv2").flatten(1);
  const at::Tensor hidden = (features.matmul(p["fc1.weight"].t()) + p["fc1.bias"]).relu();
  const at::Tensor expected = hidden.matmul(p["fc2.weight"].t()) + p["fc2.bias"];
  EXPECT_TRUE(torch::allclose(model.forward(input), expected, 1e-12, 1e-12));
}

TEST(ModelTest, ResNet8ComputesItsFormula) {
  torch::manual_seed(1);
  const Model model = make_model("resnet8", {3, 16, 16}, 10);
  model.module->to(at::kDouble);
  const auto p = model.module->named_parameters();
  const auto conv_bn = [&](const at::Tensor& x, const std::string& conv, const std::string& bn,
                           std::int64_t stride) {
    const at::Tensor& kernel = p[conv + ".weight"];
    const at::Tensor y = torch::conv2d(x, kernel, {}, stride, kernel.size(2) / 2);
    const at::Tensor centred = y - y.mean({0, 2, 3}, true);
    const at::Tensor variance = centred.square().mean({0, 2, 3}, true);
    const auto column = [&](const std::string& name) { return p[bn + name].view({1, -1, 1, 1}); };
    return centred / (variance + 1e-5).sqrt() * column(".weight") + column(".bias");
  };
  const at::Tensor input = at::randn({4, 3, 16, 16}, at::kDouble);
  at::Tensor x = conv_bn(input, "conv1", "bn1", 1).relu();
  for (const std::int64_t stage : {1, 2, 3}) {
    const std::string prefix = "layer" + std::to_string(stage) + ".0.";
    const std::int64_t stride = stage == 1 ? 1 : 2;
    const at::Tensor inner = conv_bn(x, prefix + "conv1", prefix + "bn1", stride).relu();
    const at::Tensor shortcut =
        stage == 1 ? x : conv_bn(x, prefix + "shortcut.0", prefix + "shortcut.1", stride);
    x = (conv_bn(inner, prefix + "conv2", prefix + "bn2", 1) + shortcut).relu();
  }
  const at::Tensor expected = x.mean({2, 3}).matmul(p["fc.weight"].t()) + p["fc.bias"];
  EXPECT_TRUE(torch::allclose(model.forward(input), expected, 1e-10, 1e-10));
}

TEST(ModelTest, NamesItsParametersReadably) {
  EXPECT_THAT(parameter_names(make_model("mlp:hidden=4,4", {3}, 2)),
              testing::ElementsAre("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "fc3.weight",
                                   "fc3.bias"));
  EXPECT_THAT(parameter_names(make_model("convnet", {1, 28, 28}, 10)),
              testing::ElementsAre("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias",
                                   "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"));
  EXPECT_THAT(
      parameter_names(make_model("resnet18", {3, 32, 32}, 10)),
      testing::IsSupersetOf({"conv1.weight", "bn1.weight", "layer1.0.bn1.weight",
                             "layer2.0.shortcut.0.weight", "layer4.1.conv2.weight", "fc.bias"}));
}

TEST(ModelTest, AlmostAllOfConvNetIsInMatrices) {
  std::int64_t vectors = 0;
  const Model model = make_model("convnet", {1, 28, 28}, 10);
  for (const auto& parameter : model.module->parameters()) {
    if (parameter.dim() < 2) vectors += parameter.numel();
  }
  EXPECT_LT(vectors, parameter_count(model) / 1000);
}

TEST(ModelTest, KeepsItsModuleAlive) {
  Model model = make_model("mlp", {4}, 3);
  const auto forward = model.forward;
  model = {};
  EXPECT_THAT(forward(at::ones({2, 4})).sizes(), testing::ElementsAre(2, 3));
}

TEST(ModelTest, RefusesWhatItCannotBuild) {
  EXPECT_THAT(usage_message("resnet19"), HasSubstr("did you mean 'resnet18'"));
  EXPECT_THAT(usage_message("mlp:hiden=3"), HasSubstr("did you mean 'hidden'"));
  EXPECT_THAT(usage_message("mlp:hidden=3,0"), HasSubstr("is '0'"));
  EXPECT_THAT(usage_message("convnet:hidden=3"), HasSubstr("convnet takes no options"));
  EXPECT_THAT(usage_message("resnet8:n=2"), HasSubstr("resnet8 takes no options"));
  EXPECT_THAT(usage_message("convnet", {1, 28, 3}), HasSubstr("[1, 28, 3]"));
  EXPECT_THAT(usage_message("resnet8", {28}), HasSubstr("[28]"));
  EXPECT_THAT(usage_message("mlp:hidden=1048576,1048576,1048576"),
              HasSubstr("--model mlp would take 1.76e+04 GB of memory, this host has "));
  EXPECT_THAT(usage_message("gpt:layers=1000,width=65536,heads=1", {128}),
              HasSubstr("--model gpt would take 4.123e+05 GB of memory, this host has "));
}

}  // namespace
}  // namespace thinwire
