// What comes between a gradient and its reduction.
#pragma once

#include "collectives/base/state.h"
#include "collectives/bucket.h"
#include "collectives/compression/reducer/gradient_reducer.h"

namespace thinwire {

// Makes this rank's quantity of a bucket's gradient, in place, before it is reduced. Its own state
// follows the step's verdict: `before_reduce` may change nothing that a step which is not committed
// must leave alone.
class BeforeReduce {
 public:
  virtual ~BeforeReduce() = default;

  // Once per bucket, before its first step: allocates the state.
  virtual void prepare(const Bucket& bucket) = 0;
  // Between steps: the bucket has another layout from now on.
  virtual void relayout(const Bucket& bucket) = 0;
  // Puts its work where the reducer puts it.
  virtual void before_reduce(Bucket& bucket, const StepContext& step) = 0;
  // The step is committed. Slices that are absent keep their state.
  virtual void commit(const Bucket& bucket) = 0;
  // Shows the state of one prepared bucket, between steps.
  virtual void visit(const Bucket& bucket, StateVisitor& visitor) = 0;
};

}  // namespace thinwire
