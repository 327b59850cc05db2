// Runs steps until told to stop.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collectives/compression/options.h"
#include "collectives/compression/reducer/reducer_device.h"
#include "collectives/compression/reducer/timed.h"
#include "collectives/metered.h"
#include "optimizers/device.h"
#include "optimizers/optimizer.h"
#include "optimizers/schedule.h"
#include "runtime/checkpoint/file_system.h"
#include "runtime/data/dataset.h"
#include "runtime/data/partition.h"
#include "runtime/data/sampler.h"
#include "runtime/model/buffers.h"
#include "runtime/model/model.h"
#include "runtime/report/report.h"
#include "runtime/step/arrival.h"
#include "runtime/step/carried_state.h"
#include "runtime/step/gradient_path.h"
#include "runtime/step/layout_state.h"
#include "runtime/telemetry/trace.h"
#include "runtime/trainer/options.h"
#include "runtime/trainer/precision.h"
#include "runtime/trainer/resume.h"
#include "runtime/watch/flight_recorder.h"

namespace thinwire {

// Where a trainer's arithmetic runs: the way of the gradients, and the kernels of the memory in
// which the model is. The reducer's are put on the path's communication queue, the optimizer's on
// its compute queue.
struct TrainerDevice {
  GradientPath path;
  ReducerDevice reducer;
  OptimizerDevice optimizer;
};

// The host, with these kernels on these threads (null: one for each thread that calls). What
// carries gradients is `communicator`, which must outlive it.
TrainerDevice host_device(Communicator& communicator, std::shared_ptr<Team> team,
                          const Kernels<float>& kernels = host_kernels<float>());

// What a trainer works with; all must outlive it.
struct TrainerParts {
  Model model;
  DataSplit data;
  Communicator& communicator;  // carries host memory; reports to `meter`
  Meter& meter;
  FileSystem& files;
  TrainerObserver& observer;
  // Whether this rank was asked to checkpoint and stop.
  std::function<bool()> stop_requested = [] { return false; };
  const TrainerDevice* device = nullptr;  // null: the host, one thread
  Trace* trace = nullptr;
  FlightRecorder* recorder = nullptr;            // told of steps, buckets and what else is done
  std::map<std::string, std::string> info = {};  // kept in checkpoints: the configuration
};

// Trains one rank's replica. Collective: every rank constructs one, with the same options, and
// runs.
//
// Data order, learning rate and random numbers follow attempted steps; the optimizer's step count
// follows committed ones. Fifty steps rolled back in a row end the run with an `Error`. Ranks whose
// weights differ end it with `RanksDisagree`, on all of them.
class Trainer {
 public:
  // Rank 0's initial parameters and buffers become everybody's.
  Trainer(TrainerParts parts, const TrainOptions& options);
  ~Trainer();

  // Continues from the checkpoint that `options.resume` names, if any.
  Resumption resume();
  EndReport run();
  // One step as `run` takes it, without reports, comparisons and checkpoints: for measurements.
  void run_step();

  // Between steps, alike on all ranks: the named parameters have these layouts from the next step
  // on, for the reducer and the optimizer. Throws `UsageError` as thinwire::relayout does.
  void relayout(const std::map<std::string, SliceLayout>& parts);

  // Between steps, alike on all ranks: other parameters, which the module has registered, take the
  // place of some. What was not sent of those that are removed is projected or dropped, and the
  // observer is told which; the optimizer's state of the new ones begins. A run that goes on from a
  // later checkpoint replaces the same ones before `resume`.
  void replace_parameters(const Replacement& replacement);

  // Over the test set, with the ranks' mean buffers.
  Evaluation evaluate();

  std::int64_t attempted_steps() const { return attempted_; }
  // The folder of the last one that is whole, also of the one that this run resumed from.
  const std::optional<std::string>& last_checkpoint() const { return last_checkpoint_; }
  // Of this rank so far; see TimedReducer.
  double arithmetic_seconds() const { return reducer_->arithmetic_seconds(); }
  const std::vector<Parameter>& parameters() const { return buckets_->parameters(); }
  // Everything but the model's parameters and buffers.
  void visit(StateVisitor& visitor);
  // One line for each way in which parameters travel, and why.
  std::vector<std::string> describe_compression() const;

 private:
  void build(std::vector<Parameter> parameters);

  struct Step;      // what one step came to
  struct Interval;  // sums since the last report

  Step take_step(double lr);
  bool compresses() const;
  Transmission next_transmission() const;
  bool finished() const;
  std::int64_t total_steps() const;
  RankBatch next_step();
  at::Tensor logits(const Batch& batch) const;
  at::Tensor forward_backward(const RankBatch& batch);
  // Returns the factor of clipping.
  double update(double lr);
  void skip(const Verdict& verdict, const at::Tensor& loss);
  StepReport make_report(const Interval& interval, double lr);
  void tell_of_slow_rank(const StepReport& report, double seconds);
  double residual_norm();
  // Why there is no checkpoint of this step; empty if there is one. `try_again`: a checkpoint that
  // failed is tried a second time, after making room where that was lacking.
  enum class Retry { never, once };
  std::string save(Retry retry);
  SaveRequest save_request() const;
  SaveResult save_once();
  void make_room_for_last();
  bool is_last_checkpoint_gone();
  Lineage lineage() const;

  TrainerParts parts_;
  TrainOptions options_;
  ModelBuffers model_buffers_;
  CompressionOptions compression_;
  EpochOrder order_;
  std::optional<LabelPartition> partition_;  // none: any sample may be any rank's
  BatchLayout layout_;
  at::ScalarType dtype_ = at::kFloat;
  OptimizerDevice optimizer_device_;
  Precision precision_;

  DataPosition position_;
  std::int64_t attempted_ = 0;
  std::int64_t committed_ = 0;
  std::int64_t skipped_ = 0;
  std::int64_t skipped_in_a_row_ = 0;

  std::optional<int> slow_rank_;            // that the user was told of
  std::vector<at::Tensor> buffers_before_;  // the module's, when the step began
  std::optional<std::string> last_checkpoint_;
  std::int64_t last_saved_step_ = -1;
  LayoutState layouts_;
  // Built anew where parameters are replaced, each with those before it.
  std::optional<GradientBuckets> buckets_;
  std::unique_ptr<BeforeReduce> before_;  // the reducer's averages; null: none
  std::optional<TimedReducer> reducer_;
  std::unique_ptr<Optimizer> optimizer_;
  std::optional<StepTransaction> transaction_;  // its thread uses the others
  std::optional<GradientArrival> arrival_;
};

}  // namespace thinwire
