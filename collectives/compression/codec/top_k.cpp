#include "collectives/compression/codec/top_k.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "collectives/base/error.h"

namespace thinwire {

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

}  // namespace thinwire
