#include "optimizers/groups.h"

#include <fnmatch.h>

namespace thinwire {
namespace {

bool matches(const GroupRule& rule, const Slice& slice) {
  if (rule.rank == SliceRank::vectors && !slice.is_vector()) return false;
  if (rule.rank == SliceRank::matrices && slice.is_vector()) return false;
  return fnmatch(rule.pattern.c_str(), slice.name.c_str(), 0) == 0;
}

}  // namespace

GroupRules no_decay_on_vectors() {
  return {{.rank = SliceRank::vectors, .weight_decay = 0.0}};
}

ParameterGroup resolve_group(const GroupRules& rules, const Slice& slice, ParameterGroup defaults) {
  ParameterGroup group = defaults;
  for (const auto& rule : rules) {
    if (!matches(rule, slice)) continue;
    group.weight_decay = rule.weight_decay.value_or(group.weight_decay);
    group.lr_scale = rule.lr_scale.value_or(group.lr_scale);
  }
  return group;
}

}  // namespace thinwire
