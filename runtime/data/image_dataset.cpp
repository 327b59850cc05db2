#include "runtime/data/image_dataset.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"

namespace thinwire {
namespace {

template <typename T>
void convert(std::span<const std::int64_t> indices, const std::uint8_t* images, std::int64_t numel,
             const std::array<double, 256>& normalized, at::Tensor& output) {
  std::array<T, 256> table;
  // 16-bit types convert from float only.
  using Wide = std::conditional_t<sizeof(T) == 8, double, float>;
  std::transform(normalized.begin(), normalized.end(), table.begin(),
                 [](double value) { return T(static_cast<Wide>(value)); });
  T* to = output.mutable_data_ptr<T>();
  for (const std::int64_t index : indices) {
    const std::uint8_t* from = images + index * numel;
    to =
        std::transform(from, from + numel, to, [&table](std::uint8_t byte) { return table[byte]; });
  }
}

}  // namespace

ImageDataset::ImageDataset(const ImageShape& shape, std::vector<std::uint8_t> images,
                           std::vector<std::uint8_t> labels, std::int64_t classes,
                           const Normalization& normalization)
    : shape_(shape), images_(std::move(images)), labels_(std::move(labels)), classes_(classes) {
  check_equal(std::ssize(images_), std::ssize(labels_) * shape.numel(), "bytes of all images");
  for (const std::int64_t label : labels_) check(label < classes, "a label is below `classes`");
  for (std::size_t byte = 0; byte < normalized_.size(); ++byte) {
    normalized_[byte] =
        (static_cast<double>(byte) / 255 - normalization.mean) / normalization.standard_deviation;
  }
  const std::array<std::int64_t, 4> extents{shape.channels, shape.height, shape.width, classes};
  fingerprint_ = hash64(extents.data(), sizeof(extents));
  fingerprint_ = hash64(normalized_.data(), sizeof(normalized_), fingerprint_);
  fingerprint_ = hash64(images_.data(), images_.size(), fingerprint_);
  fingerprint_ = hash64(labels_.data(), labels_.size(), fingerprint_);
}

Batch ImageDataset::batch(std::span<const std::int64_t> indices, at::ScalarType dtype) const {
  for (const std::int64_t index : indices) {
    check(index >= 0 && index < size(), "a sample's index is within the data set");
  }
  const std::int64_t n = std::ssize(indices);
  Batch batch{at::empty({n, shape_.channels, shape_.height, shape_.width}, dtype),
              at::empty({n}, at::kLong)};
  switch (dtype) {
    case at::kFloat:
      convert<float>(indices, images_.data(), shape_.numel(), normalized_, batch.input);
      break;
    case at::kDouble:
      convert<double>(indices, images_.data(), shape_.numel(), normalized_, batch.input);
      break;
    case at::kBFloat16:
      convert<at::BFloat16>(indices, images_.data(), shape_.numel(), normalized_, batch.input);
      break;
    case at::kHalf:
      convert<at::Half>(indices, images_.data(), shape_.numel(), normalized_, batch.input);
      break;
    default:
      check(false, "a batch is of float32, float64, bfloat16 or float16");
  }
  std::int64_t* target = batch.target.mutable_data_ptr<std::int64_t>();
  for (const std::int64_t index : indices) *target++ = labels_[static_cast<std::size_t>(index)];
  return batch;
}

}  // namespace thinwire
