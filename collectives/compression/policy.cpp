#include "collectives/compression/policy.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include "collectives/base/error.h"

namespace thinwire {

std::optional<std::string> reason_for_dense(const Slice& slice, const CompressionPolicy& policy) {
  if (static_cast<std::int64_t>(slice.shape.size()) < policy.min_dimensions) {
    return slice.is_vector() ? "a vector"
                             : fmt::format("fewer than {} dimensions", policy.min_dimensions);
  }
  if (slice.numel < policy.dense_below) return fmt::format("below {} values", policy.dense_below);
  for (const std::string& pattern : policy.dense_names) {
    if (matches(slice.name, pattern)) return fmt::format("name matches '{}'", pattern);
  }
  return std::nullopt;
}

bool matches(const std::string& name, const std::string& pattern) {
  return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

void require_valid(const CompressionPolicy& policy) {
  if (policy.min_dimensions < 0 || policy.dense_below < 0) {
    throw UsageError(fmt::format("compress from {} dimensions and {} values on: give 0 or more",
                                 policy.min_dimensions, policy.dense_below));
  }
  for (const std::string& pattern : policy.dense_names) {
    if (pattern.empty()) {
      throw UsageError(
          "a pattern of names that stay uncompressed is empty; give one such as '*.bias'");
    }
  }
}

}  // namespace thinwire
