// Compression as a run is told of it, and as it tells of it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "collectives/compression/options.h"
#include "runtime/trainer/options.h"

namespace thinwire {

// What the words of the options mean. Throws `UsageError`.
CompressionOptions compression_of(const TrainOptions& options);

// How a step that follows `committed` committed ones travels where `planned` is what the optimizer
// asks for: the first `start_iter` ones go uncompressed.
Transmission transmission_of(const CompressionOptions& options, std::int64_t committed,
                             Transmission planned);

// What a user should know of the options that he chose, as sentences.
std::vector<std::string> notes_on_compression(const TrainOptions& options);

// What `reducer` does with the buckets from step `first` on: one line for each way in which
// parameters travel, with the reason where one is not compressed; one with the bytes of all; a
// warning for each pattern of the policy that matches no name.
std::vector<std::string> describe_compression(const std::vector<Bucket>& buckets,
                                              const GradientReducer& reducer,
                                              const CompressionPolicy& policy, std::int64_t first);

}  // namespace thinwire
