// Data-parallel gradients for a training loop that you already have.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "collectives/compression/options.h"
#include "collectives/compression/parse.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/metered.h"
#include "runtime/buckets/gradient_buckets.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/model/buffers.h"
#include "runtime/model/model.h"
#include "runtime/step/arrival.h"
#include "runtime/step/carried_state.h"
#include "runtime/step/layout_state.h"
#include "runtime/step/transaction.h"

namespace torch::optim {
class LBFGS;
class Optimizer;
}  // namespace torch::optim

namespace thinwire {

struct DataParallelOptions {
  std::int64_t bucket_bytes = BucketOptions{}.bucket_bytes;
  // The bucket that backward fills first is small, so that communication starts early.
  std::int64_t first_bucket_bytes = BucketOptions{}.first_bucket_bytes;
  // Committed steps between comparisons of the ranks' parameters, which throw `RanksDisagree` with
  // the parameter and the ranks; 0: never.
  std::int64_t check_every = 100;
  // Of this rank's codecs, the communication thread included: 1 to 64. More than one where
  // processors are idle during backward; the bits are the same.
  int exchange_threads = 1;
  // Told what the user should know, by the rank that knows it. Null: a warning of libtorch's.
  std::function<void(const std::string&)> warn = {};
};

// Makes the gradients of a module the mean over ranks, whichever optimizer uses them:
//
//   thinwire::DataParallel parallel(*model, communicator);        // once
//   ...
//   loss.backward();
//   parallel.finish();                                            // every step
//   optimizer.step();
//
// At construction, which is collective, the ranks compare what they give (names, order, shapes,
// dtypes, memory formats, compression, options), and throw `ConfigurationMismatch` on all of them
// where something differs; then every rank's parameters and buffers become rank 0's. The object
// takes a group of its own from `communicator`: several objects, and collectives of your own, do
// not disturb each other as long as every rank makes the objects in the same order. A parameter
// belongs to one object at a time.
//
// Communication overlaps with backward from the third step on; in the first two the object counts
// the gradients that come between two `finish`, so that a model which gets several of them in a
// step (an encoder with two heads, a discriminator that the generator's loss goes through) is sent
// when all have come. Clip after `finish`; do not keep handles of gradients across it.
//
// When a gradient is not finite on some rank, or some rank calls `abandon`, the step is rolled back
// on all: every grad() is undefined, so that optimizer.step() moves nothing, and running statistics
// of norms are what they were after the step before. A parameter of which no rank had a gradient
// has an undefined grad() too, and does not move. Buffers are each rank's own after the start.
class DataParallel {
 public:
  // The first `compression.start_iter` committed steps go uncompressed. Gradients that are there
  // are dropped.
  DataParallel(const torch::nn::Module& module, Communicator& communicator,
               CompressionOptions compression = {}, DataParallelOptions options = {});
  // Parameters that are no floating-point tensors are not trained, but become rank 0's too.
  DataParallel(std::vector<Parameter> parameters, Communicator& communicator,
               CompressionOptions compression = {}, DataParallelOptions options = {});
  // With a reducer of your own.
  DataParallel(std::unique_ptr<GradientReducer> reducer, const torch::nn::Module& module,
               Communicator& communicator, DataParallelOptions options = {});

  // Ends the step that the last backward() belongs to. Loss must be a mean over the rank's samples;
  // ranks weigh alike. Throws `AgreedError` on every rank where one of them has no new gradient.
  Verdict finish();
  // The same for ranks with different numbers of samples: every sample weighs alike. 0 where there
  // are none. Call it in all steps or in none. Communication begins here, as the weights are known
  // only now.
  Verdict finish(std::int64_t samples);
  // Ends the step without an effect, on every rank: what a rank calls in place of `finish` that
  // cannot go on with it, after an exception in backward() say. The others' verdicts tell `why`.
  Verdict abandon(const std::string& why);
  // This rank has no more samples: takes part in the others' steps, without gradients, until all
  // ranks have joined. `update` is called after each of them, as the others do what follows their
  // `finish` (optimizer.step(), schedules), so that this rank's optimizer stays equal to theirs.
  // The mean is over all ranks still; with finish(samples) over those that have samples. Meanwhile
  // the others may call nothing collective of this object but `finish` and `abandon`. It serves one
  // object: with several models call finish(0) of each, in the order of the others.
  void join(const std::function<void(const Verdict&)>& update);
  // One step of an optimizer that evaluates its closure several times. `closure` makes new
  // gradients (zero_grad, forward, backward) and returns the rank's loss; the optimizer sees the
  // mean over ranks of both. Returns what the optimizer does. Throws `AgreedError` where a gradient
  // is not finite: the optimizer would take the point that it had tried.
  at::Tensor step(torch::optim::LBFGS& optimizer, const std::function<at::Tensor()>& closure);

  // While alive, backward() accumulates without communication: for all micro-batches but the last.
  [[nodiscard]] HeldBack accumulate() { return HeldBack(*arrival_); }
  // While alive, gradients that backward() makes for these parameters are dropped: of a generator's
  // loss for the discriminator, say.
  [[nodiscard]] Ignored ignore() { return Ignored(*arrival_); }

  // Between steps, alike on all ranks: the named parameters have these layouts from the next step
  // on. What is not live of one is in no message, and its gradient is 0. Your optimizer knows
  // nothing of it: weight decay and momentum go on where the gradient is 0. Throws `UsageError` for
  // a name that is no parameter's, and for a layout that the compressor cannot have.
  void relayout(const std::map<std::string, SliceLayout>& parts);
  // Between steps, alike on all ranks: other parameters take the place of some, which belong to
  // nobody from then on. The buckets are laid out anew; what was not sent of parameters that stay
  // goes on, what was not sent of others is projected or dropped, as the sentences say that it
  // returns. The values of the new ones become rank 0's. A checkpoint has their names; whoever goes
  // on from it replaces the same parameters before `load`. Give your optimizer the new ones too.
  // Throws `UsageError`, before anything changes, for a name that is no parameter's, and with a
  // reducer of your own.
  std::vector<std::string> replace_parameters(const Replacement& replacement);

  // What follows is collective, and independent of the steps' own communication.

  // The mean over ranks, the same bits on every rank.
  double mean(double value);
  // Every floating-point buffer becomes its mean over ranks, others rank 0's: before an evaluation
  // whose result shall be the same everywhere.
  void average_buffers();
  // Rank 0 runs `body` while the others wait, however long it takes: an evaluation, a file that is
  // written. Where it throws, every rank throws.
  void on_rank_zero(const std::function<void()>& body);
  // Throws `RanksDisagree` where parameters differ. Between steps.
  void check_replicas();

  // Saves parameters, buffers, the optimizer's state, residuals and the step counter into
  // `folder`/step-NNNNNNNN, so that no crash or full disk loses the checkpoint before; see
  // `save_checkpoint`. Where it cannot be written the result says so, on every rank. Between steps.
  [[nodiscard]] SaveResult save(const std::string& folder, std::int64_t step,
                                const torch::optim::Optimizer& optimizer);
  // Loads the newest checkpoint below `folder` that is whole, and returns its step; none if there
  // is none. With the ranks and options of the run that saved it training goes on bit for bit; with
  // another number of ranks parameters and optimizer are exact and residuals are their mean. Throws
  // `DataError` for a checkpoint of another model.
  std::optional<std::int64_t> load(const std::string& folder, torch::optim::Optimizer& optimizer);

  // What is compressed, how and why the rest is not, as lines for people.
  std::vector<std::string> describe_compression() const;
  // Steps that were rolled back.
  std::int64_t skipped() const { return skipped_; }
  // What this object has sent so far.
  Traffic traffic() const { return meter_->total(); }
  // Residuals and the step counter, for a checkpoint. Between steps: before backward, or after
  // finish. Throws `UsageError` where gradients have arrived that no `finish` took.
  void visit(StateVisitor& visitor);

 private:
  DataParallel(std::vector<Parameter> parameters, ModelBuffers module_buffers,
               Communicator& communicator, CompressionOptions compression, Reduction reduction,
               DataParallelOptions options);

  void build(std::vector<Parameter> parameters, Reduction reduction);
  void meet();
  void set_next_step();
  Verdict end_step(const std::function<Verdict()>& end);
  void count_step();
  void roll_back();
  void visit_model(StateVisitor& visitor, const std::vector<at::Tensor>& mean_buffers);
  void require_between_steps() const;
  void warn(const std::string& text) const;

  DataParallelOptions options_;
  std::shared_ptr<Meter> meter_;
  std::unique_ptr<Communicator> steps_;  // the group of the steps' communication thread
  std::unique_ptr<Communicator> calls_;  // and that of what the user calls in between
  std::vector<Parameter> fixed_;         // that cannot have gradients
  ModelBuffers module_buffers_;
  std::vector<at::Tensor> committed_buffers_;  // their values after the last committed step
  CompressionOptions compression_;
  ReducerDevice device_;
  bool has_own_reducer_ = false;
  LayoutState layouts_;
  // Built anew where parameters are replaced, each with those before it.
  std::optional<GradientBuckets> buckets_;
  Reduction reduction_;
  std::optional<StepTransaction> transaction_;
  std::optional<GradientArrival> arrival_;
  bool warned_of_lbfgs_ = false;
  std::int64_t attempted_ = 0;
  std::int64_t skipped_ = 0;
};

}  // namespace thinwire
