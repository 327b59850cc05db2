// Whether the position in the data that a checkpoint gives is possible.
#pragma once

#include <cstdint>

#include "runtime/checkpoint/checkpoint.h"

namespace thinwire {

// Throws `AgreedError` (exit 65) where the counters of a trainer's checkpoint contradict each other
// or the `samples` of the data set. Counters that are missing are not looked at.
void require_possible_position(const FoundCheckpoint& found, std::int64_t samples);

}  // namespace thinwire
