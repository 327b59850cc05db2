// The reducer that options ask for.
#pragma once

#include <memory>

#include "collectives/compression/options.h"
#include "collectives/compression/reducer/before_reduce.h"
#include "collectives/compression/reducer/gradient_reducer.h"
#include "collectives/compression/reducer/reducer_device.h"

namespace thinwire {

// Slices that `options.policy` has no reason to keep go through the codec; the others, by default
// vectors and scalars (biases, norms), ride along uncompressed in the same messages.
// Averages (`feedback.momentum`) are not a reducer's: throws `Bug` for them.
std::unique_ptr<GradientReducer> make_reducer(const CompressionOptions& options,
                                              const ReducerDevice& device = {});

// All that `options` ask for.
struct Reduction {
  std::unique_ptr<GradientReducer> reducer;
  std::unique_ptr<BeforeReduce> before;  // null: gradients are reduced as they are
};
Reduction make_reduction(const CompressionOptions& options, const ReducerDevice& device = {});

}  // namespace thinwire
