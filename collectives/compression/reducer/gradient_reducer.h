// The one thing that the runtime knows of compression.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "collectives/base/state.h"
#include "collectives/bucket.h"
#include "collectives/communicator.h"

namespace thinwire {

// How this step's quantity travels: as it is, through the codec, or not at all. A reducer sees no
// silent step.
enum class Transmission { dense, compressed, silent };

// Which of a rank's quantities is reduced in a step.
enum class Quantity {
  gradient,
  momentum,  // what the common momentum becomes with this rank's gradient
  update,
};

// What a commit leaves behind: values in the gradient buffer, or, where the reducer can, what came
// over the wire, as Bucket::undecoded, which is of use until the bucket's next stage. That saves a
// pass over memory and a buffer where all that follows is a norm and an update.
enum class EstimateForm { values, undecoded };

struct StepContext {
  std::int64_t step = 0;   // attempted steps before this one; with the seed it keys random rounding
  std::uint64_t seed = 0;  // the run's
  Quantity quantity = Quantity::gradient;
  Transmission transmission = Transmission::compressed;
  EstimateForm estimate = EstimateForm::values;
};

// How one parameter travels, for the line that a run prints at its start.
struct SlicePlan {
  std::string name;
  std::int64_t numel = 0;
  std::string coding;              // "sign, one scale per 1024 values" or "uncompressed: a vector"
  std::int64_t payload_bytes = 0;  // of one message with all of this slice
  bool compressed = false;
};

// In: this rank's quantity in a bucket's gradient buffer. After `commit`: the same estimate of the
// mean over ranks on every rank, bit for bit, in the buffer or coded.
//
// Per step: `stage` for every bucket, `settle`, then `commit` or `rollback` for every bucket.
// Between stage and commit the gradient buffer's content belongs to the reducer, and the bucket
// must stay where it is. A rollback leaves every state as before the stage and the gradient
// undefined. A slice that is `absent` at commit, the same on all ranks, keeps all its state as
// before the stage, and its estimate is no update: its values are 0, and `for_each_tile` leaves it
// out; its gradient was 0 on every rank. `stage` and `settle` are called by one thread at a time,
// in bucket order, the same on all ranks.
class GradientReducer {
 public:
  virtual ~GradientReducer() = default;

  // Once per bucket, before its first step: allocates the state.
  virtual void prepare(const Bucket& bucket, int rank, int size) = 0;
  // Throws `UsageError`, naming the slice, for a layout that this reducer cannot give the bucket.
  virtual void require_possible(const Bucket& bucket, const Layout& layout) const = 0;
  // Between steps, alike on all ranks: the bucket has another layout from now on. What is live
  // keeps its state, what rests holds it, what is gone loses it.
  virtual void relayout(const Bucket& bucket) = 0;
  // Sends and receives; operations may be in flight when it returns.
  virtual void stage(Bucket& bucket, Communicator& communicator, const StepContext& step) = 0;
  // Ends what the stages of this step have left in flight.
  virtual void settle(Communicator& communicator) = 0;
  // After `settle`: a parameter for which some rank's quantity was NaN or infinite, if there is
  // one; the same answer on every rank. On a device only this call and `visit` make the host wait.
  virtual std::optional<std::string> non_finite(const Bucket& bucket) = 0;
  // Of a step that is or will be committed, until the bucket's next stage: what the operator should
  // be told of this rank's messages, with the parameter's name; of the same ones again after a
  // hundred steps.
  virtual std::optional<std::string> warning(const Bucket&) const { return std::nullopt; }
  // After `settle`, before `commit` or `rollback`: makes `view`, which has the bucket's slices,
  // show the estimate that a commit would leave, in the form that the step asked for. The view's
  // tensors are the reducer's own, to be read until then. Slices that rest mean nothing.
  virtual void show_estimate(const Bucket& bucket, Bucket& view) = 0;
  // May exchange `bucket.gradient`'s storage with its own.
  virtual void commit(Bucket& bucket) = 0;
  virtual void rollback(Bucket& bucket) = 0;

  // Shows the state of one prepared bucket, between steps: what is kept in another form becomes
  // what it stands for.
  virtual void visit(const Bucket& bucket, StateVisitor& visitor) = 0;
  virtual std::vector<SlicePlan> plan(const Bucket& bucket) const = 0;
};

}  // namespace thinwire
