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

// What a user should know of the options that he chose, as sentences.
std::vector<std::string> notes_on_compression(const TrainOptions& options);
}  // namespace thinwire
