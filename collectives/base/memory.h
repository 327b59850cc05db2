// How much memory there is.
#pragma once

#include <cstdint>
#include <string>

namespace thinwire {

// Bytes that this process may have at most: the host's, or its container's if that is less.
std::int64_t memory_of_this_host();

// Throws `UsageError` where `bytes` for `what`, e.g. "--data synthetic", are more than that: a
// system that overcommits would give them, and end the process without a word once they are used.
void require_memory(const std::string& what, double bytes);

}  // namespace thinwire
