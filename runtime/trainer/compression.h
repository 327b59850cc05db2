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

// One line for each way in which slices travel: how many, and the bytes of their messages.
std::vector<std::string> describe_plans(const std::vector<SlicePlan>& plans);
// Of one message with all of them.
std::int64_t message_bytes(const std::vector<SlicePlan>& plans);
// A warning for each pattern of the policy that matches none of them.
std::vector<std::string> notes_on_names(const CompressionPolicy& policy,
                                        const std::vector<SlicePlan>& plans);

}  // namespace thinwire
