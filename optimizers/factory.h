// An optimizer from words.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>

#include "collectives/bucket.h"
#include "collectives/compression/options.h"
#include "optimizers/device.h"
#include "optimizers/groups.h"
#include "optimizers/list.h"
#include "optimizers/optimizer.h"

namespace thinwire {

// A word of `known_optimizers` and its options: "sgd:momentum=0.9,nesterov=1". Options that are not
// given have their defaults, or those of `defaults`. Throws `UsageError` naming --optimizer, or as
// the optimizer's constructor does.
std::unique_ptr<Optimizer> make_optimizer(const std::string& spec,
                                          const OptimizerDefaults& defaults,
                                          std::span<const Bucket> buckets,
                                          const GroupRules& rules = no_decay_on_vectors(),
                                          const OptimizerDevice& device = {},
                                          const CompressionPolicy& policy = {});

// With what its gradients are coded, if it exchanges something else in most steps. Throws as
// `make_optimizer` does.
std::optional<CodecOptions> gradient_codec_of(const std::string& spec);
// Whether it exchanges its momentum, in some steps or in all.
bool exchanges_momentum(const std::string& spec);

}  // namespace thinwire
