// Which tensors are not worth compressing, or must not be.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "collectives/bucket.h"

namespace thinwire {

// What keeps a slice uncompressed. Every reducer asks `reason_for_dense`.
struct CompressionPolicy {
  // Slices of fewer dimensions travel as they are: biases and norms have few values that matter.
  std::int64_t min_dimensions = 2;
  // Slices of fewer values too. 0, because a small matrix costs next to nothing either way, and
  // compressed it costs less.
  std::int64_t dense_below = 0;
  // And those whose name matches one of these patterns, as a shell matches file names: '*' stands
  // for any text, also with dots, '?' for a character, [abc] for one of several.
  std::vector<std::string> dense_names = {};
};

// Why `slice` goes uncompressed whatever the compressor is, as the end of "uncompressed: ..."; none
// if it may be compressed.
std::optional<std::string> reason_for_dense(const Slice& slice, const CompressionPolicy& policy);

// Whether the whole of `name` matches `pattern`.
bool matches(const std::string& name, const std::string& pattern);

// Throws `UsageError` for numbers below zero and empty patterns.
void require_valid(const CompressionPolicy& policy);

}  // namespace thinwire
