#include "runtime/data/synthetic.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "collectives/base/philox.h"
#include "runtime/data/image_dataset.h"

namespace thinwire {
namespace {

constexpr std::int64_t kTiles = 7;    // of a prototype, along each side
constexpr double kBytesPerUnit = 32;  // a byte spans four standard deviations on either side
enum class Part : std::uint64_t { train, test, prototypes };

Philox stream(const SyntheticOptions& options, Part part, std::int64_t index) {
  return {options.seed, PhiloxStream::synthetic_data,
          static_cast<std::uint64_t>(part) << 56 | static_cast<std::uint64_t>(index)};
}

// Mean 0, variance 1, nearly normal: the sum of four uniform 16-bit numbers, which is exact.
double draw(const Philox& stream, std::int64_t index) {
  const std::uint64_t bits = stream.bits(static_cast<std::uint64_t>(index));
  const std::uint64_t sum =
      (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
  return (static_cast<double>(sum) - 2 * 65535.0) * (std::sqrt(3.0) / 65536.0);
}

std::shared_ptr<const Dataset> make_part(const SyntheticOptions& options, Part part,
                                         std::int64_t samples) {
  const ImageShape shape{options.channels, options.size, options.size};
  const double scale = kBytesPerUnit / std::sqrt(1 + options.noise * options.noise);
  std::vector<std::uint8_t> images;
  std::vector<std::uint8_t> labels;
  images.reserve(static_cast<std::size_t>(samples * shape.numel()));
  for (std::int64_t sample = 0; sample < samples; ++sample) {
    const std::int64_t label = sample % options.classes;
    const Philox prototype = stream(options, Part::prototypes, label);
    const Philox noise = stream(options, part, sample);
    labels.push_back(static_cast<std::uint8_t>(label));
    for (std::int64_t pixel = 0; pixel < shape.numel(); ++pixel) {
      const std::int64_t x = pixel % shape.width * kTiles / shape.width;
      const std::int64_t row = pixel / shape.width;  // counted through all channels
      const std::int64_t y = row % shape.height * kTiles / shape.height;
      const std::int64_t tile = (row / shape.height * kTiles + y) * kTiles + x;
      const double value = draw(prototype, tile) + options.noise * draw(noise, pixel);
      images.push_back(
          static_cast<std::uint8_t>(std::clamp(std::round(127.5 + scale * value), 0.0, 255.0)));
    }
  }
  return std::make_shared<ImageDataset>(
      shape, std::move(images), std::move(labels), options.classes,
      Normalization{.mean = .5, .standard_deviation = kBytesPerUnit / 255});
}

}  // namespace

DataSplit make_synthetic(const SyntheticOptions& options) {
  return {make_part(options, Part::train, options.samples),
          make_part(options, Part::test, options.test_samples)};
}

}  // namespace thinwire
