// Which random draws a rank's messages are rounded with.
#pragma once

#include "collectives/base/philox.h"
#include "collectives/bucket.h"
#include "collectives/compression/reducer/gradient_reducer.h"

namespace thinwire {

// Keys of the random draws of one rank in one step and bucket, one for each of its sides.
struct RoundingKeys {
  std::uint64_t worker = 0;
  std::uint64_t owner = 0;
};

// Different for every run, step, bucket, rank and side.
inline RoundingKeys rounding_keys(const StepContext& step, const Bucket& bucket, int rank) {
  const Philox draws(step.seed, PhiloxStream::rounding, static_cast<std::uint64_t>(step.step));
  const auto place =
      static_cast<std::uint64_t>(bucket.index) << 33 | static_cast<std::uint64_t>(rank) << 1;
  return {.worker = draws.bits(place), .owner = draws.bits(place | 1)};
}

}  // namespace thinwire
