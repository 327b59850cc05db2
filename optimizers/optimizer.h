// How weights move, given the group's quantity.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "collectives/base/state.h"
#include "collectives/bucket.h"
#include "collectives/compression/reducer/gradient_reducer.h"
#include "collectives/queue.h"
#include "optimizers/rule.h"

namespace thinwire {

// What an optimizer asks for in a step.
struct StepPlan {
  Quantity quantity = Quantity::gradient;
  Transmission transmission = Transmission::compressed;
  // What its update reads. Updates and norms decode an estimate that is still coded, tile by tile.
  EstimateForm reads = EstimateForm::undecoded;
};

// What one parameter's update uses instead of the defaults.
struct ParameterGroup {
  double weight_decay = 0;
  double lr_scale = 1;
};

// Moves the weights of buckets from what the group agreed on.
//
// One step of bucket b: `before_reduce(b)` turns the gradient into the plan's quantity, in place;
// the reducer makes it the group's estimate; `after_reduce(b)` moves `b.weights`. Once all buckets
// have moved, `end_step`. A step that is rolled back calls neither, so only these two may change
// state. The estimate may be
// coded (`Bucket::undecoded`): `SliceState::update` and `squared_norm` read it in either form.
// State may belong to elements (`SliceState`), to tensors, or to a rank (`StateKind::averaged`). An
// update that needs numbers of whole tensors forms them first (slice_reductions.h). Several buckets
// may be in `before_reduce` and `after_reduce` at once. Slices that rest, frozen or absent, do not
// move.
class Optimizer {
 public:
  virtual ~Optimizer() = default;

  // A function of replicated state only, so that every rank plans the same.
  virtual StepPlan plan(std::int64_t committed_step) const = 0;
  // Puts its work on `queue`.
  virtual void before_reduce(Bucket& bucket, const StepContext& step, Queue& queue) = 0;
  virtual void after_reduce(Bucket& bucket, const StepParameters& step) = 0;
  // What the steps from now on are may follow from all buckets' state. Returns what the operator
  // should be told of that: "the variance is frozen".
  virtual std::optional<std::string> end_step(std::span<const Bucket> buckets,
                                              std::int64_t committed_step) = 0;
  // The bucket has another layout from now on: state of what is gone is dropped.
  virtual void relayout(const Bucket& bucket) = 0;
  // Shows the state of all buckets, tensors named "<kind>/<parameter>".
  virtual void visit(StateVisitor& visitor) = 0;
};

}  // namespace thinwire
