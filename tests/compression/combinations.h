// Every combination that the plain composition makes, on small buckets.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "collectives/base/error.h"
#include "collectives/compression/options.h"
#include "collectives/compression/parse.h"

namespace thinwire::testing {

struct NamedOptions {
  std::string name;
  CompressionOptions options;
};

// Variants of each codec with blocks that are small; those of PowerSGD have a reducer of their own.
inline std::vector<CodecOptions> variants() {
  return {Uncompressed{},
          Sign{64},
          Sign{32, SignScale::rms},
          Quantize{3, 64},
          Quantize{4, 32, Grid::symmetric, Rounding::stochastic},
          Quantize{2, 32, Grid::max_min, Rounding::stochastic},
          Quantize{2, 32, Grid::symmetric},
          Quantize{1, 32},
          Quantize{8, 64, Grid::symmetric, Rounding::stochastic},
          Cast{Half::bf16},
          Cast{Half::fp16},
          Fp8{64},
          TopK{0.1, 64},
          TopK{0.05, 50, Selection::exact}};
}
inline std::vector<CodecOptions> variants_like(const CodecOptions& codec) {
  std::vector<CodecOptions> alike = variants();
  std::erase_if(alike, [&](const CodecOptions& other) { return other.index() != codec.index(); });
  check(!alike.empty() || std::holds_alternative<PowerSgd>(codec), "every coding is tested");
  return alike;
}

// All rows of the table, each with one variant of its codec: the `which`-th, from the first again.
inline std::vector<NamedOptions> combinations(std::size_t which) {
  std::vector<NamedOptions> all;
  for (CompressionOptions options : valid_combinations()) {
    const auto choice = variants_like(options.codec);
    if (choice.empty()) continue;
    options.codec = choice[which % choice.size()];
    all.push_back({fmt::format("{} x {} x {}", words_of(options.codec), name(options.feedback.kind),
                               name(options.exchange)),
                   options});
  }
  return all;
}

}  // namespace thinwire::testing
