#include "collectives/compression/codec/quantize.h"

#include <fmt/format.h>

#include "collectives/base/error.h"

namespace thinwire {

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

}  // namespace thinwire
