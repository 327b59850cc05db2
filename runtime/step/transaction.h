// One step of all buckets, as a transaction.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "collectives/compression/reducer/before_reduce.h"
#include "collectives/compression/reducer/gradient_reducer.h"
#include "runtime/step/communication_thread.h"
#include "runtime/step/gradient_path.h"
#include "runtime/step/words.h"
#include "runtime/telemetry/trace.h"
#include "runtime/watch/flight_recorder.h"

namespace thinwire {

// What a step came to: the same on every rank but for `warning`, and in a silent step, of which the
// others do not know.
struct Verdict {
  // A parameter with a NaN or infinite gradient on some rank.
  std::optional<std::string> non_finite;
  // "rank 1: the batch could not be read": the first rank that abandoned the step, and why.
  std::optional<std::string> abandoned;
  // "b.weight on rank 1": a value that was not finite in a silent step. Every rank must go back to
  // what it had when the ranks last agreed, that is, after the last committed step that was not
  // silent.
  std::optional<std::string> reverted;
  // The gradients were dropped after they had been sent; the step begins anew.
  bool superseded = false;
  // The largest of the ranks' votes (see `OpeningWord`).
  std::int32_t vote = 0;
  // What the operator should be told of this rank's messages, with the parameter's name: see
  // `GradientReducer::warning`.
  std::optional<std::string> warning;
  // Not committed: the step is rolled back, and nothing may move.
  bool committed() const { return !non_finite && !abandoned && !reverted && !superseded; }
};

// What a StepTransaction can be given beside what it needs.
struct StepParts {
  // Turns a bucket's gradient into what is to be reduced, on the communication thread and queue.
  std::function<void(Bucket&, const StepContext&, Queue&)> before_reduce = {};
  // The same with state of its own, after it.
  BeforeReduce* before = nullptr;
  // Told of a bucket that has another layout from now on.
  std::function<void(const Bucket&)> relayout = {};
  Trace* trace = nullptr;
  FlightRecorder* recorder = nullptr;
  // Null: gradients are in host memory and go over the same communicator as the words, which are in
  // host memory.
  const GradientPath* path = nullptr;
};

// How a rank closes a step.
struct StepClosing {
  StepEnd end = StepEnd::finished;
  std::string why = {};  // of an abandoned step: "the batch could not be read"
};

// Carries the gradients of one step after another: whoever has them (autograd's hooks, an outer
// optimizer, another framework's hook) begins the step, hands over one bucket after the other, and
// finishes it on all ranks in the same way.
//
// Buckets may be handed over in any order, another one on each rank, from one thread at a time;
// they are staged in the order of their indices, on a thread of the transaction's own, from which
// all its collectives are issued. A bucket's gradient is the transaction's from then on until
// `finish`, which commits or rolls back all of them.
//
// A slice of which no rank had a gradient is absent (`Slice::absent`) until the next step begins:
// it has no estimate, and its residuals are as before the step. What the layout says is not live is
// in no message.
//
// A step whose context says `silent` sends nothing, and nothing is made of its gradient. Its
// estimate is this rank's own. If that is not finite, the next step that is not silent is rolled
// back on every rank (`reverted`).
class StepTransaction {
 public:
  // All must outlive this; `buckets` stay where they are. The communicator is this object's alone.
  StepTransaction(std::vector<Bucket>& buckets, GradientReducer& reducer,
                  Communicator& communicator, StepParts parts = {});
  // If a step is open, aborts the group, so that neither this rank nor a peer waits for it.
  ~StepTransaction();
  StepTransaction(const StepTransaction&) = delete;
  StepTransaction& operator=(const StepTransaction&) = delete;

  // How the next step reduces; before it begins. The same on every rank.
  void set_step(const StepContext& step) { step_ = step; }
  const StepContext& step() const { return step_; }

  bool is_open() const { return open_; }
  // Between steps, alike on all ranks: the bucket has another layout from the next step on, and so
  // have the reducer's state and, through `StepParts::relayout`, the optimizer's. Throws
  // `UsageError`, before anything changes, for one that the reducer cannot have.
  void relayout(std::size_t bucket, const Layout& layout);
  // Throws as `relayout` would, and changes nothing.
  void require_possible(std::size_t bucket, const Layout& layout) const {
    reducer_.require_possible(buckets_.at(bucket), layout);
  }
  // Opens the step and sends this rank's word. `mine.layouts` and `mine.silent_failure` are filled
  // in from what is known here. All ranks compare the layouts and throw `RanksDisagree` where they
  // differ.
  void begin(OpeningWord mine);
  // Blocks until every rank has begun; their words, in rank order.
  const std::vector<OpeningWord>& opening_words();

  // Collective, between `begin` and the first `hand_over`: the ranks' sample counts, by which what
  // is handed over is weighted. Gradients are in host memory.
  void weigh(const SamplesWord& mine);
  // What `weigh` came to; blocks.
  Weighting agreed_weighting();

  // The bucket's gradient is this rank's quantity of this step. `used[i]`: this rank has one of
  // slice i; the others are zero. Each bucket once.
  void hand_over(std::size_t bucket, const std::vector<bool>& used);
  bool was_handed_over(std::size_t bucket) const { return handed_over_[bucket]; }

  // After all buckets were handed over: waits until everything has come. Then `estimate` can be
  // read, before the verdict, so that an optimizer may form what it needs of whole tensors; slices
  // that are absent are known. `finish` takes no other closing then.
  void settle(const StepClosing& closing = {});
  // What a commit would leave of the bucket; of use until `finish`. Not in a silent step.
  Bucket estimate(std::size_t bucket);
  // After all buckets were handed over (none of them need be in a silent step): waits for
  // everything, unless `settle` has, then commits or rolls back every bucket. Rethrows the first
  // error of the communication thread; the group is aborted then. Throws `AgreedError`, on every
  // rank and after a rollback, if some rank says that it had no gradient where one was expected.
  Verdict finish(const StepClosing& closing = {});
  // Ends an open step of which no rank has handed over anything, on every rank.
  void cancel();

 private:
  // How the buckets' slices end up on all ranks.
  struct Outcome {
    std::vector<ClosingWord> words;
    std::vector<std::string> reasons;  // of every rank, if some rank abandoned the step
  };

  void agree_on_opening(const OpeningWord& mine);
  void stage_what_is_next();
  void stage(Bucket& bucket, const Queue::Mark& ready);
  void close(const StepClosing& closing);
  Verdict judge();
  Verdict finish_silent(const StepClosing& closing);
  std::string name_slice(std::size_t place) const;
  std::optional<std::string> misuse() const;
  std::vector<int> ranks_that(StepEnd end) const;
  void mark_absent();
  void abort(const std::string& reason);
  void submit(std::function<void()> job);

  std::vector<Bucket>& buckets_;
  GradientReducer& reducer_;
  Communicator& communicator_;
  std::unique_ptr<Queue> host_queue_;
  GradientPath path_;
  StepParts parts_;
  StepContext step_;

  bool open_ = false;
  bool settled_ = false;
  std::vector<bool> handed_over_;                          // per bucket
  std::vector<std::vector<bool>> used_;                    // per bucket and slice
  std::vector<std::shared_ptr<const Queue::Mark>> ready_;  // per bucket that was handed over
  std::size_t staged_ = 0;            // buckets before this one are staged or queued
  std::uint32_t silent_failure_ = 0;  // as in `OpeningWord`

  // The communication thread's, until it is drained.
  std::vector<OpeningWord> opening_;
  AgreedWeight weight_;
  Outcome outcome_;

  CommunicationThread thread_;  // last: its jobs use the others
};

}  // namespace thinwire
