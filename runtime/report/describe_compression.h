// What compression does with a model, for people.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "collectives/bucket.h"
#include "collectives/compression/policy.h"
#include "collectives/compression/reducer/gradient_reducer.h"

namespace thinwire {

// What `reducer` does with the buckets from step `first` on, as lines: one for each way in which
// parameters travel, with the reason where they are not compressed; one with the bytes of all of
// them; and a warning for each pattern of the policy that matches no name.
std::vector<std::string> describe_compression(const std::vector<Bucket>& buckets,
                                              const GradientReducer& reducer,
                                              const CompressionPolicy& policy, std::int64_t first);

}  // namespace thinwire
