#include "launch/bench_shapes.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <numeric>

namespace thinwire {
namespace {

std::int64_t numel(const std::vector<std::int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

// The figures are those that torchvision prints for resnet50.
TEST(BenchShapes, AreTorchvisionsResnet50) {
  const auto shapes = resnet50_shapes();
  std::int64_t all = 0;
  std::int64_t in_vectors = 0;
  for (const auto& [name, shape] : shapes) {
    all += numel(shape);
    if (shape.size() < 2) in_vectors += numel(shape);
  }
  EXPECT_EQ(shapes.size(), 161u);
  EXPECT_EQ(all, 25'557'032);
  EXPECT_EQ(in_vectors, 2 * 26'560 + 1000);

  const std::map<std::string, std::vector<std::int64_t>> by_name(shapes.begin(), shapes.end());
  EXPECT_EQ(by_name.size(), shapes.size());
  using Shape = std::vector<std::int64_t>;
  EXPECT_EQ(by_name.at("conv1.weight"), (Shape{64, 3, 7, 7}));
  EXPECT_EQ(by_name.at("layer1.0.downsample.0.weight"), (Shape{256, 64, 1, 1}));
  EXPECT_EQ(by_name.at("layer2.0.conv1.weight"), (Shape{128, 256, 1, 1}));
  EXPECT_EQ(by_name.at("layer3.5.conv2.weight"), (Shape{256, 256, 3, 3}));
  EXPECT_EQ(by_name.at("layer4.2.conv3.weight"), (Shape{2048, 512, 1, 1}));
  EXPECT_EQ(by_name.at("layer4.2.bn3.bias"), (Shape{2048}));
  EXPECT_EQ(by_name.at("fc.weight"), (Shape{1000, 2048}));
  EXPECT_EQ(shapes.front().first, "conv1.weight");
  EXPECT_EQ(shapes.back().first, "fc.bias");
}

}  // namespace
}  // namespace thinwire
