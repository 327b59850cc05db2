// Every combination that the plain composition makes, on small buckets.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "collectives/compression/options.h"

namespace thinwire::testing {

struct NamedOptions {
  std::string name;
  CompressionOptions options;
};

// Variants of the codec at this index in CodecOptions, with blocks that are small.
inline std::vector<CodecOptions> variants(std::size_t codec) {
  switch (codec) {
    case 0:
      return {Uncompressed{}};
    case 1:
      return {Sign{64}, Sign{32, SignScale::rms}};
    case 2:
      return {Quantize{3, 64},
              Quantize{4, 32, Grid::symmetric, Rounding::stochastic},
              Quantize{2, 32, Grid::max_min, Rounding::stochastic},
              Quantize{2, 32, Grid::symmetric},
              Quantize{1, 32},
              Quantize{8, 64, Grid::symmetric, Rounding::stochastic}};
    case 3:
      return {Cast{Half::bf16}, Cast{Half::fp16}};
    case 4:
      return {TopK{0.1, 64}, TopK{0.05, 50, Selection::exact}};
    default:
      return {};  // a reducer of its own
  }
}

// All rows of the table, each with one variant of its codec: the `which`-th, from the first again.
inline std::vector<NamedOptions> combinations(std::size_t which) {
  constexpr const char* codecs[] = {"none", "sign", "quantize", "cast", "topk"};
  constexpr const char* feedbacks[] = {"auto", "none", "error_feedback", "econtrol"};
  constexpr const char* exchanges[] = {"auto", "all_reduce", "two_stage", "all_gather"};
  std::vector<NamedOptions> all;
  for (CompressionOptions options : valid_combinations()) {
    const auto codec = options.codec.index();
    const auto choice = variants(codec);
    if (choice.empty()) continue;
    options.codec = choice[which % choice.size()];
    all.push_back({fmt::format("{} {} x {} x {}", codecs[codec], which % choice.size(),
                               feedbacks[static_cast<int>(options.feedback.kind)],
                               exchanges[static_cast<int>(options.exchange)]),
                   options});
  }
  return all;
}

}  // namespace thinwire::testing
