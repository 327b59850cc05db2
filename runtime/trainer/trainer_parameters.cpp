// What a trainer builds for its parameters, and builds anew where some are replaced.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "collectives/agreement.h"
#include "collectives/base/error.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "optimizers/factory.h"
#include "runtime/trainer/trainer.h"

namespace thinwire {
namespace {

BucketOptions bucket_options(const TrainOptions& options) {
  BucketOptions buckets;
  buckets.bucket_bytes = static_cast<std::int64_t>(options.bucket_mb * (1 << 20));
  buckets.first_bucket_bytes = std::min(buckets.first_bucket_bytes, buckets.bucket_bytes);
  return buckets;
}

// The reducer; what comes before it goes to `before`.
std::unique_ptr<GradientReducer> make_reducer_and(std::unique_ptr<BeforeReduce>& before,
                                                  const CompressionOptions& compression,
                                                  const TrainerDevice* device) {
  Reduction made = make_reduction(compression, device ? device->reducer : ReducerDevice{});
  before = std::move(made.before);
  return std::move(made.reducer);
}

}  // namespace

TrainerDevice host_device(Communicator& communicator, std::shared_ptr<Team> team,
                          const Kernels<float>& kernels) {
  // Everything runs at once: both ends of the path may have the same queue.
  const std::shared_ptr<Queue> queue = make_host_queue(std::move(team));
  return {{communicator, *queue, *queue}, {.for_float = kernels, .queue = queue}, {.queue = queue}};
}

// Each refers to those before it.
void Trainer::build(std::vector<Parameter> parameters) {
  arrival_.reset();
  transaction_.reset();
  buckets_.emplace(std::move(parameters), bucket_options(options_));
  reducer_.emplace(make_reducer_and(before_, compression_, parts_.device), parts_.meter);
  transaction_.emplace(
      buckets_->buckets(), *reducer_, parts_.communicator,
      StepParts{
          .before_reduce = [this](Bucket& bucket, const StepContext& step,
                                  Queue& queue) { optimizer_->before_reduce(bucket, step, queue); },
          .before = before_.get(),
          .relayout = [this](const Bucket& bucket) { optimizer_->relayout(bucket); },
          .trace = parts_.trace,
          .recorder = parts_.recorder,
          .path = parts_.device ? &parts_.device->path : nullptr});
  arrival_.emplace(*buckets_, *transaction_, Counting::declared);
  std::vector<at::Tensor> weights;
  for (const Bucket& bucket : buckets_->buckets()) weights.push_back(bucket.weights);
  broadcast_tensors(parts_.communicator, weights, 0);
  // After the broadcast: an optimizer may copy the weights it starts from.
  const std::int64_t steps = total_steps();
  optimizer_ = make_optimizer(
      options_.optimizer,
      {.momentum = options_.momentum,
       .weight_decay = options_.weight_decay,
       .lr_warmup = parse_schedule(options_.lr_schedule, options_.lr, steps).warmup(),
       .total_steps = steps},
      buckets_->buckets(), no_decay_on_vectors(), optimizer_device_, compression_.policy);
}

void Trainer::replace_parameters(const Replacement& replacement) {
  check(!transaction_->is_open(), "parameters are replaced between steps");
  std::vector<Parameter> now = replaced(parameters(), replacement);
  GradientBuckets::require_possible(now);
  GradientArrival::require_free(replacement.added);
  std::string shapes;
  for (const auto& [name, tensor] : now) shapes += fmt::format("{} {}\n", name, tensor.sizes());
  require_same_everywhere(
      parts_.communicator, {{"parameters", shapes}},
      "the ranks replaced different parameters; replace the same ones by the same on every rank");
  const auto show = [this](StateVisitor& visitor) {
    optimizer_->visit(visitor);
    for (const Bucket& bucket : buckets_->buckets()) {
      reducer_->visit(bucket, visitor);
      if (before_) before_->visit(bucket, visitor);
    }
  };
  CarriedState state(show, parts_.communicator);
  const std::vector<std::string> sentences = state.replace(replacement);
  auto parts = parts_by_name(buckets_->buckets());
  for (const std::string& name : replacement.removed) parts.erase(name);
  build(std::move(now));
  thinwire::relayout(parts, buckets_->buckets(), *transaction_);
  state.fill(show);
  for (const auto& sentence : sentences) parts_.observer.on_line(sentence);
}

void Trainer::relayout(const std::map<std::string, SliceLayout>& parts) {
  thinwire::relayout(parts, buckets_->buckets(), *transaction_);
}

}  // namespace thinwire
