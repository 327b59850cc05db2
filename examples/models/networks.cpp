#include "examples/models/networks.h"

#include <memory>
#include <string>

namespace thinwire {
namespace {

constexpr std::int64_t kConv1Channels = 32;
constexpr std::int64_t kConv2Channels = 32;
constexpr std::int64_t kHidden = 128;

torch::nn::Conv2d convolution(std::int64_t inputs, std::int64_t outputs, std::int64_t kernel,
                              std::int64_t stride) {
  return torch::nn::Conv2d(torch::nn::Conv2dOptions(inputs, outputs, kernel)
                               .stride(stride)
                               .padding(kernel / 2)
                               .bias(false));
}

}  // namespace

Mlp::Mlp(std::int64_t inputs, const std::vector<std::int64_t>& hidden, std::int64_t classes) {
  std::vector<std::int64_t> widths = hidden;
  widths.push_back(classes);
  for (const std::int64_t width : widths) {
    const std::string name = "fc" + std::to_string(layers_.size() + 1);
    layers_.push_back(register_module(name, torch::nn::Linear(inputs, width)));
    inputs = width;
  }
}

at::Tensor Mlp::forward(const at::Tensor& input) {
  at::Tensor x = layers_.front()->forward(input.flatten(1));
  for (std::size_t i = 1; i < layers_.size(); ++i) x = layers_[i]->forward(x.relu());
  return x;
}

ConvNet::ConvNet(std::int64_t channels, std::int64_t height, std::int64_t width,
                 std::int64_t classes) {
  using torch::nn::Conv2dOptions;
  conv1_ = register_module(
      "conv1", torch::nn::Conv2d(Conv2dOptions(channels, kConv1Channels, 3).padding(1)));
  conv2_ = register_module(
      "conv2", torch::nn::Conv2d(Conv2dOptions(kConv1Channels, kConv2Channels, 3).padding(1)));
  const std::int64_t features = kConv2Channels * (height / 4) * (width / 4);
  fc1_ = register_module("fc1", torch::nn::Linear(features, kHidden));
  fc2_ = register_module("fc2", torch::nn::Linear(kHidden, classes));
}

at::Tensor ConvNet::forward(const at::Tensor& input) {
  // Pooling before ReLU gives the same values from a quarter of the work.
  at::Tensor x = torch::max_pool2d(conv1_->forward(input), 2).relu();
  x = torch::max_pool2d(conv2_->forward(x), 2).relu();
  return fc2_->forward(fc1_->forward(x.flatten(1)).relu());
}

BasicBlock::BasicBlock(std::int64_t inputs, std::int64_t outputs, std::int64_t stride) {
  conv1_ = register_module("conv1", convolution(inputs, outputs, 3, stride));
  bn1_ = register_module("bn1", torch::nn::BatchNorm2d(outputs));
  conv2_ = register_module("conv2", convolution(outputs, outputs, 3, 1));
  bn2_ = register_module("bn2", torch::nn::BatchNorm2d(outputs));
  if (stride != 1 || inputs != outputs) {
    shortcut_ =
        register_module("shortcut", torch::nn::Sequential(convolution(inputs, outputs, 1, stride),
                                                          torch::nn::BatchNorm2d(outputs)));
  }
}

at::Tensor BasicBlock::forward(const at::Tensor& input) {
  at::Tensor x = bn1_->forward(conv1_->forward(input)).relu_();
  x = bn2_->forward(conv2_->forward(x));
  x += shortcut_.is_empty() ? input : shortcut_->forward(input);
  return x.relu_();
}

ResNet::ResNet(std::int64_t channels, const std::vector<std::int64_t>& widths,
               std::int64_t blocks_per_stage, std::int64_t classes) {
  conv1_ = register_module("conv1", convolution(channels, widths.front(), 3, 1));
  bn1_ = register_module("bn1", torch::nn::BatchNorm2d(widths.front()));
  std::int64_t inputs = widths.front();
  for (const std::int64_t width : widths) {
    torch::nn::Sequential stage;
    for (std::int64_t block = 0; block < blocks_per_stage; ++block) {
      const bool halve = block == 0 && !stages_.empty();
      stage->push_back(std::make_shared<BasicBlock>(inputs, width, halve ? 2 : 1));
      inputs = width;
    }
    stages_.push_back(register_module("layer" + std::to_string(stages_.size() + 1), stage));
  }
  fc_ = register_module("fc", torch::nn::Linear(inputs, classes));
}

at::Tensor ResNet::forward(const at::Tensor& input) {
  at::Tensor x = bn1_->forward(conv1_->forward(input)).relu_();
  for (auto& stage : stages_) x = stage->forward(x);
  return fc_->forward(x.mean({2, 3}));
}

}  // namespace thinwire
