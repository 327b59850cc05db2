#include "collectives/compression/codec/top_k.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "collectives/compression/codec/blocks.h"
#include "collectives/compression/codec/typed.h"

namespace thinwire {
namespace {

constexpr std::uint32_t kNotFinite = 0xffffffff;  // in place of the number of kept values

template <typename T>
using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

// Whole numbers in the order of |x|.
template <typename T>
Bits<T> magnitude_bits(T value) {
  return std::bit_cast<Bits<T>>(std::abs(value));
}

// What is kept: all values with bits >= high, and the first `ties` of those with bits == high - 1.
template <typename T>
struct Cut {
  Bits<T> high = 1;
  std::int64_t ties = 0;
};

template <typename T>
Cut<T> find_cut(const T* values, std::int64_t count, const Format& format) {
  const auto passing = [&](Bits<T> least) {
    std::int64_t passed = 0;
    for (std::int64_t i = 0; i < count; ++i) passed += magnitude_bits(values[i]) >= least;
    return passed;
  };
  Bits<T> low = 0;
  Bits<T> high = 0;
  for (std::int64_t i = 0; i < count; ++i) high = std::max(high, magnitude_bits(values[i]));
  ++high;
  std::int64_t above = 0;  // those with bits >= high
  while (high - low > 1) {
    const Bits<T> mid = low + (high - low) / 2;
    const std::int64_t passed = passing(mid);
    if (passed > format.kept) {
      low = mid;
      continue;
    }
    high = mid;
    above = passed;
    if (format.selection == Selection::threshold && 20 * above >= 19 * std::int64_t{format.kept}) {
      return {high, 0};
    }
  }
  return {high, low > 0 ? format.kept - above : 0};
}

// Where the parts of a block's payload begin.
template <typename T>
struct Places {
  explicit Places(const CodedBlock& block)
      : indices(4 + block.format.kept * static_cast<std::int64_t>(sizeof(T))),
        width(index_bits(block.count)) {}
  static std::int64_t value(std::int64_t k) { return 4 + k * static_cast<std::int64_t>(sizeof(T)); }
  std::int64_t indices;
  int width;  // bits per index
};

void write_bits(char* stream, std::int64_t at, int width, std::uint64_t value) {
  for (int bit = 0; bit < width; ++bit, ++at) {
    stream[at / 8] = static_cast<char>(stream[at / 8] | ((value >> bit & 1) << (at % 8)));
  }
}

std::int64_t read_bits(const char* stream, std::int64_t at, int width) {
  std::int64_t value = 0;
  for (int bit = 0; bit < width; ++bit, ++at) {
    value |= std::int64_t{static_cast<unsigned char>(stream[at / 8]) >> (at % 8) & 1} << bit;
  }
  return value;
}

template <typename T>
void encode_block(const T* values, const CodedBlock& block, char* payload) {
  const Format& format = block.format;
  std::memset(payload, 0, static_cast<std::size_t>(payload_bytes<T>(format, block.count)));
  for (std::int64_t i = 0; i < block.count; ++i) {
    if (std::isfinite(values[i])) continue;
    store(payload, kNotFinite);
    return;
  }
  const Places<T> places(block);
  Cut<T> cut = find_cut(values, block.count, format);
  std::uint32_t kept = 0;
  for (std::int64_t i = 0; i < block.count; ++i) {
    const Bits<T> bits = magnitude_bits(values[i]);
    const bool tie = bits == cut.high - 1 && cut.ties > 0;
    if (bits < cut.high && !tie) continue;
    if (tie) --cut.ties;
    store(payload + places.value(kept), values[i]);
    write_bits(payload + places.indices, std::int64_t{kept} * places.width, places.width,
               static_cast<std::uint64_t>(i));
    ++kept;
  }
  store(payload, kept);
}

// The kept values' places, or none if the payload makes no sense. `payload` may be any bytes.
template <typename T>
std::optional<std::vector<std::int64_t>> read_indices(const char* payload,
                                                      const CodedBlock& block) {
  const auto kept = load<std::uint32_t>(payload);
  if (kept > static_cast<std::uint32_t>(block.format.kept)) return std::nullopt;
  const Places<T> places(block);
  std::vector<std::int64_t> indices;
  std::int64_t last = -1;
  for (std::int64_t k = 0; k < kept; ++k) {
    const std::int64_t index = read_bits(payload + places.indices, k * places.width, places.width);
    if (index <= last || index >= block.count) return std::nullopt;
    indices.push_back(index);
    last = index;
  }
  return indices;
}

template <typename T>
void decode_add_block(const char* payload, const CodedBlock& block, T weight, T* into) {
  const auto indices = read_indices<T>(payload, block);
  if (!indices) {
    std::fill_n(into, block.count, std::numeric_limits<T>::quiet_NaN());
    return;
  }
  for (std::size_t k = 0; k < indices->size(); ++k) {
    into[(*indices)[k]] +=
        weight * load<T>(payload + Places<T>::value(static_cast<std::int64_t>(k)));
  }
}

template <typename T>
bool within_block(const char* payload, const CodedBlock& block, T limit) {
  const auto indices = read_indices<T>(payload, block);
  if (!indices) return false;
  for (std::size_t k = 0; k < indices->size(); ++k) {
    const T value = load<T>(payload + Places<T>::value(static_cast<std::int64_t>(k)));
    if (!(std::abs(value) <= limit)) return false;
  }
  return true;
}

}  // namespace

TopKCodec::TopKCodec(const TopK& options) : options_(options) {
  if (!(options.density > 0 && options.density <= 1)) {
    throw UsageError(fmt::format("compressor topk: density is {}; give a share above 0, at most 1",
                                 options.density));
  }
  if (options.block < 32 || options.block > kLargestBlock) {
    throw UsageError(
        fmt::format("compressor topk: block is {}; give 32 to {}", options.block, kLargestBlock));
  }
}

std::string TopKCodec::describe() const {
  return fmt::format("the largest {:g} % of each {} values{}", 100 * options_.density,
                     options_.block,
                     options_.selection == Selection::exact ? "" : ", by a threshold");
}

Format TopKCodec::format(std::int64_t count) const {
  const auto share = std::llround(options_.density * static_cast<double>(count));
  return {.coding = Coding::top_k,
          .selection = options_.selection,
          .kept = static_cast<std::int32_t>(
              std::min<std::int64_t>(count, std::max<std::int64_t>(1, share)))};
}

void TopKCodec::encode(const at::Tensor& values, at::Tensor payload, const DrawKey&) const {
  with_type(values.scalar_type(), [&]<typename T>(T) {
    const T* from = values.const_data_ptr<T>();
    char* to = static_cast<char*>(payload.data_ptr());
    for_each_block<T>(*this, values.numel(), [&](const CodedBlock& block) {
      encode_block(from + block.begin, block, to + block.payload);
    });
  });
}

void TopKCodec::decode_add(const at::Tensor& payload, double weight, at::Tensor into) const {
  with_type(into.scalar_type(), [&]<typename T>(T) {
    const char* from = static_cast<const char*>(payload.const_data_ptr());
    T* to = into.data_ptr<T>();
    for_each_block<T>(*this, into.numel(), [&](const CodedBlock& block) {
      decode_add_block(from + block.payload, block, static_cast<T>(weight), to + block.begin);
    });
  });
}

bool TopKCodec::finite(const at::Tensor& payload, std::int64_t count, at::ScalarType dtype,
                       std::int64_t ranks) const {
  return with_type(dtype, [&]<typename T>(T) {
    const T limit = largest_addend<T>(ranks);
    const char* from = static_cast<const char*>(payload.const_data_ptr());
    bool finite = true;
    for_each_block<T>(*this, count, [&](const CodedBlock& block) {
      finite = finite && within_block(from + block.payload, block, limit);
    });
    return finite;
  });
}

}  // namespace thinwire
