// What `thinwire bench` reduces when it is to be like a model's gradients.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace thinwire {

// A parameter's name and shape.
using NamedShape = std::pair<std::string, std::vector<std::int64_t>>;

// Those of torchvision's resnet50, in its order: 161 parameters, 25,557,032 values. 53 convolutions
// without bias, a batch normalisation behind each, and one linear layer to 1000 classes.
std::vector<NamedShape> resnet50_shapes();

}  // namespace thinwire
