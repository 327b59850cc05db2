// How a run's options choose compression, and what the user is told about that choice.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "collectives/compression/options.h"
#include "runtime/trainer/options.h"

namespace thinwire {

// What the words of the options mean. Throws `UsageError`.
CompressionOptions compression_of(const TrainOptions& options);

// What a user should know about the compression that he chose, as sentences.
std::vector<std::string> notes_on_compression(const TrainOptions& options);
}  // namespace thinwire
