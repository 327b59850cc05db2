#include "runtime/checkpoint/safetensors.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/base/text.h"
#include "runtime/checkpoint/strict_json.h"

namespace thinwire {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "data are written as they lie in memory");

constexpr std::size_t length_bytes = 8;
// The bound of the reference implementation.
constexpr std::uint64_t max_header_bytes = 100'000'000;
constexpr std::size_t max_dimensions = 64;  // libtorch's operations take no more
constexpr std::string_view metadata_key = "__metadata__";
constexpr std::string_view checksum_prefix = "xxh3:";

constexpr std::pair<std::string_view, at::ScalarType> dtypes[] = {
    {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf},  {"BF16", at::kBFloat16},
    {"I64", at::kLong},   {"I32", at::kInt},   {"I16", at::kShort}, {"I8", at::kChar},
    {"U8", at::kByte},    {"BOOL", at::kBool},
};

std::string_view dtype_name(at::ScalarType type) {
  const auto* found = std::find_if(std::begin(dtypes), std::end(dtypes),
                                   [&](const auto& known) { return known.second == type; });
  check(found != std::end(dtypes), "safetensors holds tensors of this dtype");
  return found->first;
}

std::optional<at::ScalarType> dtype_of(const json& name) {
  for (const auto& [known, type] : dtypes) {
    if (name == known) return type;
  }
  return std::nullopt;
}

std::string_view bytes_of(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()};
}

std::string checksum(std::string_view bytes) {
  return hex64(hash64(bytes));
}

// What the header says of one tensor.
struct Description {
  std::string name;
  at::ScalarType dtype = at::kFloat;
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// Reads one file, whose name it puts into every error.
class Reader {
 public:
  Reader(std::string_view bytes, std::string place) : bytes_(bytes), place_(std::move(place)) {}

  Safetensors read() {
    const json header = parse_object(header_text(), place_);
    Safetensors file;
    std::vector<Description> descriptions;
    for (const auto& [name, item] : header.items()) {
      if (name == metadata_key) {
        auto strings = as_strings(item);
        if (!strings) damaged("__metadata__ is not a map of strings");
        file.metadata = std::move(*strings);
      } else {
        descriptions.push_back(describe(name, item));
      }
    }
    check_cover(descriptions);
    for (const auto& description : descriptions) {
      file.tensors.emplace(description.name, take(description, file.metadata));
    }
    for (const auto& [key, value] : file.metadata) {
      if (key.starts_with(checksum_prefix))
        damaged("'" + printable(key) + "' belongs to no tensor");
    }
    return file;
  }

 private:
  [[noreturn]] void damaged(const std::string& what) const {
    throw DataError(fmt::format("{}: {}; the file is damaged or no safetensors file, use another",
                                place_, what));
  }
  [[noreturn]] void damaged(const std::string& name, const std::string& what) const {
    damaged(fmt::format("tensor '{}': {}", printable(name), what));
  }

  std::string_view header_text() {
    if (bytes_.size() < length_bytes) damaged("it ends before the header");
    std::uint64_t length = 0;
    std::memcpy(&length, bytes_.data(), length_bytes);
    if (length > max_header_bytes || length > bytes_.size() - length_bytes) {
      damaged(fmt::format("its header would have {} bytes", length));
    }
    data_ = bytes_.substr(length_bytes + length);
    return bytes_.substr(length_bytes, length);
  }

  Description describe(const std::string& name, const json& item) const {
    if (!item.is_object() || item.size() != 3 || !item.contains("dtype") ||
        !item.contains("shape") || !item.contains("data_offsets")) {
      damaged(name, "its description is not {dtype, shape, data_offsets}");
    }
    Description tensor;
    tensor.name = name;
    const auto dtype = dtype_of(item["dtype"]);
    if (!dtype) damaged(name, "unknown dtype " + shown(item["dtype"]));
    tensor.dtype = *dtype;
    tensor.shape = sizes(name, item["shape"]);
    const auto offsets = sizes(name, item["data_offsets"]);
    if (offsets.size() != 2 || offsets[0] > offsets[1] ||
        static_cast<std::uint64_t>(offsets[1]) > data_.size()) {
      damaged(name, "its data_offsets are not within the file");
    }
    tensor.begin = offsets[0];
    tensor.end = offsets[1];
    if (byte_size(tensor) != tensor.end - tensor.begin) {
      damaged(name, "its data have another size than its shape");
    }
    return tensor;
  }

  std::vector<std::int64_t> sizes(const std::string& name, const json& list) const {
    std::vector<std::int64_t> values;
    if (!list.is_array()) damaged(name, "its shape or data_offsets are no list");
    if (list.size() > max_dimensions) {
      damaged(name, fmt::format("its shape has {} dimensions", list.size()));
    }
    for (const auto& item : list) {
      const auto value = as_size(item);
      if (!value) damaged(name, "its shape or data_offsets hold " + shown(item));
      values.push_back(*value);
    }
    return values;
  }

  std::int64_t byte_size(const Description& tensor) const {
    // Strides are products without the zeros, so those must not overflow either.
    auto strided = static_cast<std::int64_t>(c10::elementSize(tensor.dtype));
    bool empty = false;
    for (const std::int64_t size : tensor.shape) {
      empty = empty || size == 0;
      if (__builtin_mul_overflow(strided, std::max<std::int64_t>(size, 1), &strided)) {
        damaged(tensor.name, "its shape is too large");
      }
    }
    return empty ? 0 : strided;
  }

  // Every byte of the data must belong to exactly one tensor. Sorts by place.
  void check_cover(std::vector<Description>& tensors) const {
    std::sort(tensors.begin(), tensors.end(), [](const Description& a, const Description& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    std::int64_t covered = 0;
    for (const auto& tensor : tensors) {
      if (tensor.begin < covered) damaged(tensor.name, "its data overlap another tensor's");
      if (tensor.begin > covered) damaged(tensor.name, "a gap lies before its data");
      covered = tensor.end;
    }
    if (static_cast<std::uint64_t>(covered) != data_.size()) {
      damaged(fmt::format("{} bytes at its end belong to no tensor",
                          data_.size() - static_cast<std::uint64_t>(covered)));
    }
  }

  // Copies the tensor out and its checksum out of `metadata`.
  at::Tensor take(const Description& description,
                  std::map<std::string, std::string>& metadata) const {
    const std::string_view data =
        data_.substr(static_cast<std::size_t>(description.begin),
                     static_cast<std::size_t>(description.end - description.begin));
    const auto expected = metadata.find(std::string(checksum_prefix) + description.name);
    if (expected != metadata.end()) {
      if (expected->second != checksum(data)) {
        damaged(description.name, "its data do not have the checksum that the header gives");
      }
      metadata.erase(expected);
    }
    // A bool that is neither 0 nor 1 is undefined behaviour when it is read.
    if (description.dtype == at::kBool &&
        std::any_of(data.begin(), data.end(), [](char byte) { return byte != 0 && byte != 1; })) {
      damaged(description.name, "a bool is neither 0 nor 1");
    }
    at::Tensor tensor = at::empty(description.shape, at::TensorOptions().dtype(description.dtype));
    if (!data.empty()) std::memcpy(tensor.mutable_data_ptr(), data.data(), data.size());
    return tensor;
  }

  std::string_view bytes_;
  std::string_view data_;
  std::string place_;
};

}  // namespace

std::string write_safetensors(const std::vector<NamedTensor>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<NamedTensor> sorted;
  for (const auto& [name, tensor] : tensors) {
    sorted.push_back({name, tensor.detach().to(at::kCPU).contiguous()});
  }
  // Large elements first, so that every tensor lies aligned in the file.
  std::sort(sorted.begin(), sorted.end(), [](const NamedTensor& a, const NamedTensor& b) {
    return std::pair(b.tensor.element_size(), std::string_view(a.name)) <
           std::pair(a.tensor.element_size(), std::string_view(b.name));
  });

  json header = json::object();
  json& strings = header[std::string(metadata_key)] = metadata;
  if (metadata.empty()) strings = json::object();
  std::size_t size = 0;
  for (const auto& [name, tensor] : sorted) {
    check(!header.contains(name), "tensor names are unique and none is __metadata__");
    const std::string_view data = bytes_of(tensor);
    header[name] = {{"dtype", dtype_name(tensor.scalar_type())},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {size, size + data.size()}}};
    strings[std::string(checksum_prefix) + name] = checksum(data);
    size += data.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');

  const std::uint64_t length = text.size();
  std::string bytes(length_bytes, '\0');
  std::memcpy(bytes.data(), &length, length_bytes);
  bytes.reserve(length_bytes + text.size() + size);
  bytes += text;
  for (const auto& named : sorted) bytes += bytes_of(named.tensor);
  return bytes;
}

Safetensors read_safetensors(std::string_view bytes, const std::string& place) {
  return Reader(bytes, place).read();
}

}  // namespace thinwire
