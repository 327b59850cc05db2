#include "runtime/data/idx.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "collectives/base/error.h"
#include "runtime/data/file_bytes.h"
#include "runtime/data/image_dataset.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::uint8_t>;

constexpr const char* kReplace =
    "replace it with a good copy, or install Debian's package dataset-fashion-mnist";
constexpr int kClasses = 10;

[[noreturn]] void refuse(const fs::path& file, const std::string& what) {
  throw DataError(fmt::format("'{}' {}; {}", file.string(), what, kReplace));
}

fs::path find(const fs::path& folder, const std::string& name) {
  const fs::path plain = folder / name;
  const fs::path compressed = folder / (name + ".gz");
  std::error_code error;
  if (fs::exists(plain, error)) return plain;
  if (fs::exists(compressed, error)) return compressed;
  throw DataError(
      fmt::format("expected a file '{}' or '{}.gz'; give the folder as "
                  "fashion-mnist:PATH, or install Debian's package "
                  "dataset-fashion-mnist",
                  plain.string(), name));
}

std::shared_ptr<const ImageDataset> load_part(const fs::path& folder, const std::string& part) {
  const fs::path image_file = find(folder, part + "-images-idx3-ubyte");
  const fs::path label_file = find(folder, part + "-labels-idx1-ubyte");
  IdxArray images = read_idx(image_file, 3);
  IdxArray labels = read_idx(label_file, 1);
  if (images.shape[0] != labels.shape[0]) {
    refuse(label_file, fmt::format("has {} labels for the {} images of '{}'", labels.shape[0],
                                   images.shape[0], image_file.string()));
  }
  const auto bad = std::find_if(labels.values.begin(), labels.values.end(),
                                [](std::uint8_t label) { return label >= kClasses; });
  if (bad != labels.values.end()) {
    refuse(label_file, fmt::format("gives sample {} the label {}, which is not below {}",
                                   bad - labels.values.begin(), *bad, kClasses));
  }
  return std::make_shared<ImageDataset>(
      ImageShape{.channels = 1, .height = images.shape[1], .width = images.shape[2]},
      std::move(images.values), std::move(labels.values), kClasses,
      Normalization{.mean = .2860, .standard_deviation = .3530});
}

}  // namespace

IdxArray read_idx(const std::filesystem::path& file, int dimensions) {
  Bytes bytes = read_file_bytes(file, kReplace);

  const auto header = 4 + 4 * static_cast<std::size_t>(dimensions);
  if (bytes.size() < header) {
    refuse(file, fmt::format("ends within its header ({} of {} bytes)", bytes.size(), header));
  }
  const Bytes magic{0, 0, 8, static_cast<std::uint8_t>(dimensions)};
  if (!std::equal(magic.begin(), magic.end(), bytes.begin())) {
    refuse(file,
           fmt::format("begins with {:02x}{:02x}{:02x}{:02x}, not {:08x} as an IDX file of "
                       "unsigned bytes in {} dimensions",
                       bytes[0], bytes[1], bytes[2], bytes[3], 0x800 + dimensions, dimensions));
  }
  IdxArray array;
  std::uint64_t expected = 1;
  for (std::size_t i = 4; i < header; i += 4) {
    std::uint32_t extent = 0;
    for (std::size_t byte = 0; byte < 4; ++byte) extent = extent << 8 | bytes[i + byte];
    if (extent == 0) refuse(file, "has a dimension of zero");
    if (__builtin_mul_overflow(expected, std::uint64_t{extent}, &expected)) {
      refuse(file, "has dimensions whose product overflows");
    }
    array.shape.push_back(extent);
  }
  const std::size_t actual = bytes.size() - header;
  if (actual < expected) {
    refuse(file, fmt::format("is truncated: {} of {} bytes after its header", actual, expected));
  }
  if (actual > expected) {
    refuse(file, fmt::format("has {} bytes too many after its {}", actual - expected, expected));
  }
  bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(header));
  array.values = std::move(bytes);
  return array;
}

DataSplit load_fashion_mnist(const std::filesystem::path& folder) {
  DataSplit split{load_part(folder, "train"), load_part(folder, "t10k")};
  if (split.train->sample_shape() != split.test->sample_shape()) {
    refuse(folder, "has test images of another size than its training images");
  }
  return split;
}

}  // namespace thinwire
