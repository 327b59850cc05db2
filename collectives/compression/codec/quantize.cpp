#include "collectives/compression/codec/quantize.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "collectives/compression/codec/blocks.h"
#include "collectives/compression/codec/typed.h"

namespace thinwire {
namespace {

// The levels of one block: level = floor((x - least) * inverse + bias + r), 0 to top. Adding or
// subtracting a zero changes nothing, so both grids go through the same formula.
template <typename T>
struct Levels {
  T unit = 0;
  T least = 0;    // max_min; 0 for symmetric
  T bias = 0;     // symmetric: m; 0 for max_min
  T inverse = 0;  // 1 / unit; 0 with a zero unit
  T top = 0;      // the highest level
};

template <typename T>
Levels<T> grid_of(const Format& format) {
  Levels<T> levels;
  if (format.grid == Grid::max_min) {
    levels.top = static_cast<T>((1 << format.bits) - 1);
  } else {
    levels.bias = static_cast<T>((1 << (format.bits - 1)) - 1);
    levels.top = 2 * levels.bias;
  }
  return levels;
}

template <typename T>
T value_of(const Levels<T>& levels, T level) {
  // A symmetric grid has no least value to add: x + 0 is x but for -0.
  if (levels.bias > 0) return levels.unit * (level - levels.bias);
  return levels.least + levels.unit * level;
}

template <typename T>
Levels<T> levels_of(const T* values, std::int64_t count, const Format& format) {
  Levels<T> levels = grid_of<T>(format);
  bool finite = true;
  T least = std::numeric_limits<T>::infinity();
  T largest = -std::numeric_limits<T>::infinity();
  for (std::int64_t i = 0; i < count; ++i) {
    finite = finite && std::isfinite(values[i]);
    const T value = format.grid == Grid::max_min ? values[i] : std::abs(values[i]);
    least = std::min(least, value);
    largest = std::max(largest, value);
  }
  if (format.grid == Grid::max_min) {
    // -0 becomes +0.
    levels.least = least + 0;
    levels.unit = ((largest + 0) - levels.least) / levels.top;
  } else {
    levels.unit = largest / levels.bias;
  }
  if (!finite || !std::isfinite(levels.unit) || !std::isfinite(value_of(levels, levels.top))) {
    levels.unit = levels.least = std::numeric_limits<T>::quiet_NaN();
    return levels;
  }
  if (levels.unit < std::numeric_limits<T>::min()) {
    levels.unit = 0;
    if (std::abs(levels.least) < std::numeric_limits<T>::min()) levels.least = 0;
    return levels;
  }
  levels.inverse = 1 / levels.unit;
  return levels;
}

template <typename T>
unsigned level_of(const Levels<T>& levels, T value, T draw) {
  const T place = ((value - levels.least) * levels.inverse + levels.bias) + draw;
  return static_cast<unsigned>(std::clamp(std::floor(place), T{0}, levels.top));
}

// Rows of 32 values: word p of a row holds bit p of each level; the last row's words are cut to
// whole bytes. The byte with bit `plane` of value i's level:
std::int64_t plane_byte(const CodedBlock& block, std::int64_t i, int plane) {
  const std::int64_t row = i / 32;
  const std::int64_t width = std::min<std::int64_t>(4, (block.count - row * 32 + 7) / 8);
  return row * 4 * block.format.bits + plane * width + i % 32 / 8;
}

template <typename T>
void encode_block(const T* values, const CodedBlock& block, char* payload, std::uint64_t key,
                  std::int64_t begin) {
  const Format& format = block.format;
  const Levels<T> levels = levels_of(values, block.count, format);
  std::memset(payload, 0, static_cast<std::size_t>(payload_bytes<T>(format, block.count)));
  if (format.grid == Grid::max_min) {
    store(payload, levels.least);
    payload += sizeof(T);
  }
  store(payload, levels.unit);
  payload += sizeof(T);
  if (levels.inverse == 0) return;
  for (std::int64_t i = 0; i < block.count; ++i) {
    const T draw = format.rounding == Rounding::nearest ? static_cast<T>(0.5)
                                                        : rounding_draw<T>(key, begin, i);
    const unsigned level = level_of(levels, values[i], draw);
    for (int plane = 0; plane < format.bits; ++plane) {
      char& byte = payload[plane_byte(block, i, plane)];
      byte = static_cast<char>(byte | ((level >> plane & 1) << (i % 8)));
    }
  }
}

// The numbers at the start of a block's payload; `payload` moves on to its levels.
template <typename T>
Levels<T> read_levels(const Format& format, const char*& payload) {
  Levels<T> levels = grid_of<T>(format);
  if (format.grid == Grid::max_min) {
    levels.least = load<T>(payload);
    payload += sizeof(T);
  }
  levels.unit = load<T>(payload);
  payload += sizeof(T);
  return levels;
}

template <typename T>
void decode_add_block(const char* payload, const CodedBlock& block, T weight, T* into) {
  const Levels<T> levels = read_levels<T>(block.format, payload);
  for (std::int64_t i = 0; i < block.count; ++i) {
    unsigned level = 0;
    for (int plane = 0; plane < block.format.bits; ++plane) {
      const auto byte = static_cast<unsigned char>(payload[plane_byte(block, i, plane)]);
      level |= (byte >> (i % 8) & 1u) << plane;
    }
    into[i] += weight * value_of(levels, static_cast<T>(level));
  }
}

}  // namespace

QuantizeCodec::QuantizeCodec(const Quantize& options)
    : options_(options),
      grid_(options.grid.value_or(options.bits >= 4 ? Grid::symmetric : Grid::max_min)) {
  if (options.bits < 1 || options.bits > 8) {
    throw UsageError(fmt::format("compressor quantize: bits is {}; give 1 to 8", options.bits));
  }
  if (grid_ == Grid::symmetric && options.bits < 2) {
    throw UsageError(
        "compressor quantize: a symmetric grid of 1 bit has one value; give 2 bits or "
        "more, or grid=max_min");
  }
  if (options.block < 32 || options.block % 32 != 0 || options.block > kLargestBlock) {
    throw UsageError(
        fmt::format("compressor quantize: block is {}; give a multiple of 32 from 32 to {}",
                    options.block, kLargestBlock));
  }
}

std::string QuantizeCodec::describe() const {
  return fmt::format("{} bits per value, {} grid of {} values, {} rounding", options_.bits,
                     grid_ == Grid::max_min ? "max-min" : "symmetric", options_.block,
                     options_.rounding == Rounding::nearest ? "nearest" : "stochastic");
}

Format QuantizeCodec::format(std::int64_t) const {
  return {.coding = Coding::quantize,
          .grid = grid_,
          .rounding = options_.rounding,
          .bits = static_cast<std::uint8_t>(options_.bits)};
}

void QuantizeCodec::encode(const at::Tensor& values, at::Tensor payload,
                           const DrawKey& draws) const {
  with_type(values.scalar_type(), [&]<typename T>(T) {
    const T* from = values.const_data_ptr<T>();
    char* to = static_cast<char*>(payload.data_ptr());
    for_each_block<T>(*this, values.numel(), [&](const CodedBlock& block) {
      encode_block(from + block.begin, block, to + block.payload, draws.key,
                   draws.begin + block.begin);
    });
  });
}

void QuantizeCodec::decode_add(const at::Tensor& payload, double weight, at::Tensor into) const {
  with_type(into.scalar_type(), [&]<typename T>(T) {
    const char* from = static_cast<const char*>(payload.const_data_ptr());
    T* to = into.data_ptr<T>();
    for_each_block<T>(*this, into.numel(), [&](const CodedBlock& block) {
      decode_add_block(from + block.payload, block, static_cast<T>(weight), to + block.begin);
    });
  });
}

bool QuantizeCodec::finite(const at::Tensor& payload, std::int64_t count, at::ScalarType dtype,
                           std::int64_t ranks) const {
  return with_type(dtype, [&]<typename T>(T) {
    const T limit = largest_addend<T>(ranks);
    bool finite = true;
    for_each_block<T>(*this, count, [&](const CodedBlock& block) {
      const char* from = static_cast<const char*>(payload.const_data_ptr()) + block.payload;
      const Levels<T> levels = read_levels<T>(block.format, from);
      finite = finite && std::abs(levels.least) <= limit &&
               std::abs(value_of(levels, levels.top)) <= limit;
    });
    return finite;
  });
}

}  // namespace thinwire
