// Labelled images in memory.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/data/dataset.h"

namespace thinwire {

// One image's extents; values lie channel by channel, row by row.
struct ImageShape {
  std::int64_t channels = 1;
  std::int64_t height = 1;
  std::int64_t width = 1;

  std::int64_t numel() const { return channels * height * width; }
};

// Of pixels scaled to [0, 1].
struct Normalization {
  double mean = 0;
  double standard_deviation = 1;
};

// A data set that keeps one byte per value and converts a batch when it is asked for:
// (byte / 255 - mean) / standard_deviation, computed in double and rounded to the batch's type.
class ImageDataset : public Dataset {
 public:
  // `images` holds one image after the other, `labels` one label in [0, classes) for each.
  ImageDataset(const ImageShape& shape, std::vector<std::uint8_t> images,
               std::vector<std::uint8_t> labels, std::int64_t classes,
               const Normalization& normalization);

  std::int64_t size() const override { return static_cast<std::int64_t>(labels_.size()); }
  std::int64_t classes() const override { return classes_; }
  std::vector<std::int64_t> sample_shape() const override {
    return {shape_.channels, shape_.height, shape_.width};
  }
  std::span<const std::uint8_t> labels() const override { return labels_; }
  // On the CPU, input [n, channels, height, width]; `dtype` is float32, float64, bfloat16 or
  // float16.
  Batch batch(std::span<const std::int64_t> indices, at::ScalarType dtype) const override;
  std::uint64_t fingerprint() const override { return fingerprint_; }

 private:
  ImageShape shape_;
  std::vector<std::uint8_t> images_;
  std::vector<std::uint8_t> labels_;
  std::int64_t classes_;
  std::array<double, 256> normalized_;  // what each byte stands for
  std::uint64_t fingerprint_;
};

}  // namespace thinwire
