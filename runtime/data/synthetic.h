// A classification task made up from a seed: nothing to install, and the same bits everywhere.
#pragma once

#include <cstdint>

#include "runtime/data/dataset.h"

namespace thinwire {

// What to make up; each field is the key of the same name in "synthetic:KEY=VALUE,...".
struct SyntheticOptions {
  std::int64_t samples = 4096;       // for training
  std::int64_t test_samples = 1024;  // drawn like them
  std::int64_t classes = 10;         // at most 256; sample i is of class i mod classes
  std::int64_t channels = 1;
  std::int64_t size = 28;  // height and width, pixels
  double noise = 1.0;      // its standard deviation, as a multiple of that of the prototypes
  std::uint64_t seed = 1;
};

// Sample = its class's prototype (random tiles, 7 x 7 to an image) + noise for each pixel, scaled
// to zero mean and unit variance and kept in steps of 1/32. The arithmetic is exact up to the
// scale, so the bits do not depend on a mathematical library. With noise 1 a linear model is right
// nearly always after one epoch; the task becomes hard where noise nears 20.
DataSplit make_synthetic(const SyntheticOptions& options);

}  // namespace thinwire
