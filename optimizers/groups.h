// Which parameters get a weight decay or a learning rate of their own.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "collectives/bucket.h"
#include "optimizers/optimizer.h"

namespace thinwire {

enum class SliceRank {
  any,
  vectors,   // vectors and scalars: biases, norms
  matrices,  // two dimensions or more
};

// What one kind of slice uses instead of the optimizer's defaults.
struct GroupRule {
  std::string pattern = "*";        // glob on the whole name, e.g. "layer1.*.weight" (fnmatch)
  SliceRank rank = SliceRank::any;  // both pattern and rank have to match
  std::optional<double> weight_decay = {};  // unset: left as it is
  std::optional<double> lr_scale = {};      // multiplies the step's rate
};

// Applied in order; of several matching rules the last one that sets a value counts.
using GroupRules = std::vector<GroupRule>;

// No weight decay on biases and norms, that is on every slice of fewer than two dimensions.
GroupRules no_decay_on_vectors();

ParameterGroup resolve_group(const GroupRules& rules, const Slice& slice, ParameterGroup defaults);

}  // namespace thinwire
