// What a model learns from.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace thinwire {

struct Batch {
  at::Tensor input;   // [n, ...]
  at::Tensor target;  // int64 [n], classes; or [n, targets_per_sample]
};

// A fixed list of samples. Immutable, so ranks that are threads share one.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual std::int64_t size() const = 0;
  virtual std::int64_t classes() const = 0;
  // One sample's shape, e.g. {1, 28, 28}.
  virtual std::vector<std::int64_t> sample_shape() const = 0;
  // How many things there are to predict of one sample: its class, or for text the next character
  // at every place. All samples count alike: a sample's loss is the mean over its targets.
  virtual std::int64_t targets_per_sample() const { return 1; }
  // The class of each sample, below `classes()`; empty where samples have none (text).
  virtual std::span<const std::uint8_t> labels() const { return {}; }
  // The samples at `indices`, with inputs of type `dtype` (of text always int64). Safe from several
  // threads.
  virtual Batch batch(std::span<const std::int64_t> indices, at::ScalarType dtype) const = 0;
  // A checksum of everything in it, equal on ranks that loaded the same data.
  virtual std::uint64_t fingerprint() const = 0;
};

struct DataSplit {
  std::shared_ptr<const Dataset> train;
  std::shared_ptr<const Dataset> test;
};

}  // namespace thinwire
