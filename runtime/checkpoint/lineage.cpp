#include "runtime/checkpoint/lineage.h"

#include <fmt/format.h>

#include "collectives/base/text.h"

namespace thinwire {
namespace {

// "adam" of "adam:beta1=0.8".
std::string kind_of(const std::string& spec) {
  return spec.substr(0, spec.find(':'));
}

}  // namespace

std::string describe_other_lineage(const Manifest& manifest, const Lineage& lineage) {
  for (const auto& [key, now] : lineage) {
    const auto before = manifest.info.find(key);
    if (before == manifest.info.end() || before->second == now) continue;
    // Options of a model or an optimizer that matter show in its parameters and its state.
    const bool only_kind = key == "model" || key == "optimizer";
    if (only_kind && kind_of(before->second) == kind_of(now)) continue;
    return fmt::format("was made with {} {}, this run has {}", key, printable(before->second),
                       printable(now));
  }
  return {};
}

}  // namespace thinwire
