// The modules behind `make_model`.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <vector>

namespace thinwire {

// Fully connected layers fc1, fc2, ... with ReLU between them, on flattened samples.
class Mlp : public torch::nn::Module {
 public:
  Mlp(std::int64_t inputs, const std::vector<std::int64_t>& hidden, std::int64_t classes);
  at::Tensor forward(const at::Tensor& input);

 private:
  std::vector<torch::nn::Linear> layers_;
};

// conv1 3x3 - pool - conv2 3x3 - pool - fc1 - fc2. Without normalisation, so that a sample's
// gradient does not depend on the others in its batch.
class ConvNet : public torch::nn::Module {
 public:
  ConvNet(std::int64_t channels, std::int64_t height, std::int64_t width, std::int64_t classes);
  at::Tensor forward(const at::Tensor& input);

 private:
  torch::nn::Conv2d conv1_{nullptr};
  torch::nn::Conv2d conv2_{nullptr};
  torch::nn::Linear fc1_{nullptr};
  torch::nn::Linear fc2_{nullptr};
};

// relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)); the shortcut is a strided 1x1 convolution
// with batch normalisation where the shape changes, else the identity.
class BasicBlock : public torch::nn::Module {
 public:
  BasicBlock(std::int64_t inputs, std::int64_t outputs, std::int64_t stride);
  at::Tensor forward(const at::Tensor& input);

 private:
  torch::nn::Conv2d conv1_{nullptr};
  torch::nn::BatchNorm2d bn1_{nullptr};
  torch::nn::Conv2d conv2_{nullptr};
  torch::nn::BatchNorm2d bn2_{nullptr};
  torch::nn::Sequential shortcut_{nullptr};
};

// The ResNet of He et al. (2015) for CIFAR: a 3x3 stem, stages layer1, layer2, ... of which each
// but the first halves the image, global average pooling and fc.
class ResNet : public torch::nn::Module {
 public:
  // One stage of `blocks_per_stage` blocks for each of `widths`.
  ResNet(std::int64_t channels, const std::vector<std::int64_t>& widths,
         std::int64_t blocks_per_stage, std::int64_t classes);
  at::Tensor forward(const at::Tensor& input);

 private:
  torch::nn::Conv2d conv1_{nullptr};
  torch::nn::BatchNorm2d bn1_{nullptr};
  std::vector<torch::nn::Sequential> stages_;
  torch::nn::Linear fc_{nullptr};
};

}  // namespace thinwire
