// Reduces gradients while backward still makes them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "collectives/compression/reducer/gradient_reducer.h"
#include "runtime/buckets/communication_thread.h"
#include "runtime/buckets/gradient_buckets.h"
#include "runtime/buckets/gradient_path.h"
#include "runtime/telemetry/trace.h"
#include "runtime/watch/flight_recorder.h"

namespace thinwire {

// What a step came to, the same on every rank.
struct Verdict {
  // A parameter with a NaN or infinite gradient on some rank; the step is rolled back then.
  std::optional<std::string> non_finite;
  // The largest of the ranks' votes (see begin_step).
  std::int64_t vote = 0;
  bool committed() const { return !non_finite; }
};

// What a BucketReducer can be given beside what it needs.
struct BucketReducerParts {
  // Turns a bucket's gradient into what is to be reduced, on the communication thread.
  std::function<void(Bucket&)> before_reduce = {};
  Trace* trace = nullptr;
  FlightRecorder* recorder = nullptr;
  // Null: gradients are in host memory and go over the same communicator as the control word, which
  // carries host memory.
  const GradientPath* path = nullptr;
};

// Watches gradients arrive, stages each full bucket, in the order of their indices and on a thread
// of its own, while backward goes on; `finish` ends the step on all ranks in the same way.
//
// After a committed step every parameter's grad() is an alias of the group's estimate. After a
// rollback, and where the estimate is coded, every grad() is undefined, so that an optimizer that
// steps anyway moves nothing. The first gradient that arrives after `finish` starts the next step:
// it zeroes its slot and attaches its alias again, whatever the user's zero_grad() did in between.
//
// A parameter that gets no gradient counts as zero; one that does not require a gradient is frozen:
// it is in no update and holds its residual. Before anything else of a step is sent, all ranks
// compare which parameters are frozen, and throw `RanksDisagree` where they differ.
class BucketReducer {
 public:
  // All must outlive this.
  BucketReducer(GradientBuckets& buckets, GradientReducer& reducer, Communicator& communicator,
                BucketReducerParts parts = {});
  // If a step is open, aborts the group, so that neither this rank nor a peer waits for it.
  ~BucketReducer();
  BucketReducer(const BucketReducer&) = delete;
  BucketReducer& operator=(const BucketReducer&) = delete;

  // How the next step reduces; before its first gradient.
  void set_step(const StepContext& step) { step_ = step; }
  // Opens the step now rather than at its first gradient, so that the ranks' control message
  // travels while forward runs. `vote` reaches everybody through the verdict.
  void begin_step(std::int64_t vote);
  // Gradients accumulate and are not sent until `resume`: all micro-batches but the last.
  void pause() { paused_ = true; }
  void resume() { paused_ = false; }

  // Sends what was not sent yet, waits for everything, then commits or rolls back every bucket.
  // Rethrows the first error of the communication thread; the group is aborted then.
  Verdict finish();

  // What the autograd hooks call, also to drive this without autograd: a gradient of `parameter`
  // is about to be accumulated into its slot; it has been accumulated.
  void arriving(std::size_t parameter);
  void arrived(std::size_t parameter);

 private:
  struct Hooks;

  void open_step(std::int64_t vote);
  void agree_on_control(std::int64_t vote, std::uint64_t frozen);
  void launch_ready_buckets();
  void launch(std::size_t bucket);
  void stage(Bucket& bucket, const Queue::Mark& ready);
  void submit(std::function<void()> job);

  GradientBuckets& buckets_;
  GradientReducer& reducer_;
  Communicator& communicator_;
  std::unique_ptr<Queue> host_queue_;
  GradientPath path_;
  std::function<void(Bucket&)> before_reduce_;
  Trace* trace_;
  FlightRecorder* recorder_;
  StepContext step_;

  std::mutex mutex_;  // hooks of a device run on an engine thread
  bool open_ = false;
  bool paused_ = false;
  std::vector<bool> touched_;         // per parameter: its slot holds this step's gradient
  std::vector<bool> complete_;        // per parameter: no more will come in this step
  std::vector<std::size_t> pending_;  // per bucket: parameters that are not complete
  std::size_t launched_ = 0;          // buckets before this one are staged or queued
  std::int64_t vote_ = 0;  // what the ranks voted; the communication thread's until drained

  CommunicationThread thread_;
  std::unique_ptr<Hooks> hooks_;  // last: no hook may run into a half-destroyed object
};

}  // namespace thinwire
