#include "runtime/report/describe_compression.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

namespace thinwire {

std::vector<std::string> describe_compression(const std::vector<Bucket>& buckets,
                                              const GradientReducer& reducer,
                                              const CompressionPolicy& policy, std::int64_t first) {
  struct Way {
    std::int64_t tensors = 0;
    std::int64_t values = 0;
    std::int64_t bytes = 0;
  };
  std::map<std::string, Way> ways;
  std::set<std::string> unmatched(policy.dense_names.begin(), policy.dense_names.end());
  std::int64_t dense = 0;
  std::int64_t coded = 0;
  for (const Bucket& bucket : buckets) {
    dense += bucket.parameter_numel() * static_cast<std::int64_t>(bucket.gradient.element_size());
    for (const SlicePlan& plan : reducer.plan(bucket)) {
      Way& way = ways[plan.coding];
      way.tensors += 1;
      way.values += plan.numel;
      way.bytes += plan.payload_bytes;
      coded += plan.payload_bytes;
      std::erase_if(unmatched, [&](const auto& pattern) { return matches(plan.name, pattern); });
    }
  }
  std::vector<std::string> lines;
  for (const auto& [coding, way] : ways) {
    lines.push_back(fmt::format("{} tensors, {} values: {}, {} bytes a message", way.tensors,
                                way.values, coding, way.bytes));
  }
  lines.push_back(fmt::format(
      "{} buckets, {} bytes dense, {} coded, from step {} on: {:.1f} times fewer", buckets.size(),
      dense, coded, first,
      static_cast<double>(dense) / static_cast<double>(std::max<std::int64_t>(coded, 1))));
  for (const std::string& pattern : unmatched) {
    lines.push_back(fmt::format(
        "warning: no parameter's name matches '{}' of dense_names; correct it or leave it out",
        pattern));
  }
  return lines;
}

}  // namespace thinwire
