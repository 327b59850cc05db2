#include "launch/bench_shapes.h"

#include <array>

namespace thinwire {
namespace {

// A convolution and the batch normalisation behind it.
void add_convolution(std::vector<NamedShape>& shapes, const std::string& convolution,
                     const std::string& normalization, std::int64_t outputs, std::int64_t inputs,
                     std::int64_t kernel) {
  shapes.push_back({convolution + ".weight", {outputs, inputs, kernel, kernel}});
  shapes.push_back({normalization + ".weight", {outputs}});
  shapes.push_back({normalization + ".bias", {outputs}});
}

}  // namespace

std::vector<NamedShape> resnet50_shapes() {
  constexpr std::array<std::int64_t, 4> kBlocks = {3, 4, 6, 3};
  constexpr std::int64_t kExpansion = 4;  // of a block's last convolution
  std::vector<NamedShape> shapes;
  add_convolution(shapes, "conv1", "bn1", 64, 3, 7);
  std::int64_t inputs = 64;
  std::int64_t width = 64;
  for (std::size_t stage = 0; stage < kBlocks.size(); ++stage, width *= 2) {
    for (std::int64_t block = 0; block < kBlocks[stage]; ++block) {
      const std::string name =
          "layer" + std::to_string(stage + 1) + "." + std::to_string(block) + ".";
      const std::int64_t outputs = width * kExpansion;
      add_convolution(shapes, name + "conv1", name + "bn1", width, inputs, 1);
      add_convolution(shapes, name + "conv2", name + "bn2", width, width, 3);
      add_convolution(shapes, name + "conv3", name + "bn3", outputs, width, 1);
      if (block == 0) {
        add_convolution(shapes, name + "downsample.0", name + "downsample.1", outputs, inputs, 1);
      }
      inputs = outputs;
    }
  }
  shapes.push_back({"fc.weight", {1000, inputs}});
  shapes.push_back({"fc.bias", {1000}});
  return shapes;
}

}  // namespace thinwire
