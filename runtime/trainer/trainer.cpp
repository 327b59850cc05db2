#include "runtime/trainer/trainer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/compression/codec/codec.h"
#include "optimizers/clipping.h"
#include "runtime/layers/dropout_mask.h"
#include "runtime/report/describe_compression.h"
#include "runtime/report/slowest_rank.h"
#include "runtime/trainer/compression.h"

namespace thinwire {
namespace {

constexpr std::int64_t kMaximumSkipsInARow = 50;
// Samples at once, and no more of them than have this many targets: what a long text's layers hold
// stays small.
constexpr std::int64_t kEvaluationBatch = 250;
constexpr std::int64_t kEvaluationTargets = 1 << 15;
// A rank that is busy this much longer than the others is slow. A shorter time is noise.
constexpr double kSlowRatio = 1.5;
constexpr double kSlowSeconds = 0.1;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The loss that is trained: cross entropy, summed over targets.
at::Tensor loss_sum(const at::Tensor& logits, const at::Tensor& target) {
  return torch::nn::functional::cross_entropy(
      logits.flatten(0, -2), target.flatten(),
      torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kSum));
}

std::optional<LabelPartition> make_partition(const TrainOptions& options, const Dataset& data,
                                             Communicator& communicator) {
  const PartitionOptions partition = parse_partition(options.partition);
  const auto* by_label = std::get_if<ByLabel>(&partition);
  if (by_label == nullptr) return std::nullopt;
  return LabelPartition(data, *by_label, communicator.size(), communicator.rank());
}

Batch to_device(Batch batch, at::Device device) {
  return {batch.input.to(device), batch.target.to(device)};
}

// Collective: on which ranks the loss is not finite either, as the end of a sentence.
std::string where_not_finite(Communicator& communicator, double loss) {
  std::vector<double> bad(static_cast<std::size_t>(communicator.size()), 0.0);
  bad[static_cast<std::size_t>(communicator.rank())] = std::isfinite(loss) ? 0 : 1;
  bad = all_reduce_sum(communicator, std::move(bad));
  std::vector<std::size_t> ranks;
  for (std::size_t rank = 0; rank < bad.size(); ++rank) {
    if (bad[rank] > 0) ranks.push_back(rank);
  }
  if (ranks.empty()) return ", though every rank's loss is";
  return fmt::format(", nor is the loss on rank {}", fmt::join(ranks, ", "));
}

// What people read a language model's loss as; empty for other data.
std::string perplexity(const Dataset& data, const Evaluation& result) {
  if (data.targets_per_sample() == 1) return {};
  return fmt::format(", perplexity {:.2f}", std::exp(result.loss));
}

// Sums the squares of the residuals of one kind that it is shown.
struct SquaredResiduals final : StateVisitor {
  explicit SquaredResiduals(std::string of_kind) : kind(std::move(of_kind)) {}
  void tensor(const StateEntry& entry) override {
    if (!entry.name.starts_with(kind)) return;
    sum += entry.tensor.to(at::kDouble).square().sum().item<double>();
  }
  void counter(const std::string&, std::int64_t&) override {}
  std::string kind;
  double sum = 0;
};

}  // namespace

struct Trainer::Step {
  std::int64_t samples = 0;  // of all ranks
  at::Tensor loss;           // of this rank, summed over samples; where the model is
  std::int64_t bytes_sent = 0;
  bool compressed = false;
  bool epoch_ended = false;
  bool stop = false;  // some rank was asked to
  double seconds = 0;
  double arithmetic = 0;
  double waited = 0;
  double clip_scale = 1;  // by which clipping multiplied the gradient, or the momentum
};

struct Trainer::Interval {
  std::int64_t steps = 0;
  std::int64_t samples = 0;  // of all ranks
  at::Tensor loss;           // of this rank, summed over samples; where the model is
  // Of the steps alone, without evaluation, reports and checkpoints.
  std::int64_t bytes_sent = 0;
  std::int64_t compressed_steps = 0;
  double seconds = 0;
  double arithmetic = 0;  // seconds in the reducer
  double waited = 0;      // seconds in which this rank waited for the others
  double clip_scales = 0;

  void add(const Step& step);
};

void Trainer::Interval::add(const Step& step) {
  ++steps;
  samples += step.samples;
  loss = loss.defined() ? loss + step.loss : step.loss;
  bytes_sent += step.bytes_sent;
  compressed_steps += step.compressed ? 1 : 0;
  seconds += step.seconds;
  arithmetic += step.arithmetic;
  waited += step.waited;
  clip_scales += step.clip_scale;
}

Trainer::Trainer(TrainerParts parts, const TrainOptions& options)
    : parts_(std::move(parts)),
      options_(options),
      model_buffers_(*parts_.model.module),
      compression_(compression_of(options)),
      order_(parts_.data.train->size(), options.seed),
      partition_(make_partition(options, *parts_.data.train, parts_.communicator)),
      layout_{parts_.communicator.size(), options.batch_size, options.accumulate},
      optimizer_device_(parts_.device ? parts_.device->optimizer : OptimizerDevice{}),
      precision_(parse_precision(options.precision)) {
  build(parameters_of(*parts_.model.module));
  broadcast_tensors(parts_.communicator, parts_.model.module->buffers(), 0);
  dtype_ = parameters().front().tensor.scalar_type();
}

Trainer::~Trainer() = default;

EndReport Trainer::run() {
  const auto start = Clock::now();
  Interval whole;
  Interval interval;
  const Schedule schedule = parse_schedule(options_.lr_schedule, options_.lr, total_steps());
  double lr = schedule.at(std::max<std::int64_t>(attempted_ - 1, 0));
  bool stop = false;
  std::string not_saved = "no step was taken";
  bool compressing = !compresses() || committed_ >= compression_.start_iter;
  const Doing computing(parts_.recorder, "computing");

  while (!finished() && !stop) {
    lr = schedule.at(attempted_);
    if (!compressing && committed_ >= compression_.start_iter) {
      compressing = true;
      parts_.observer.on_line(fmt::format("compression starts at step {}", attempted_ + 1));
    }
    const Step step = take_step(lr);
    stop = step.stop;
    whole.add(step);
    interval.add(step);
    if (attempted_ % options_.report_every == 0 || finished() || stop) {
      const StepReport report = make_report(interval, lr);
      parts_.observer.on_step(report);
      tell_of_slow_rank(report, interval.seconds);
      interval = {};
    }
    if (options_.check_every > 0 && attempted_ % options_.check_every == 0) {
      const Doing comparing(parts_.recorder, "comparing weights");
      require_equal_replicas(parts_.communicator, parameters());
    }
    if (step.epoch_ended && !finished()) {
      const Evaluation result = evaluate();
      parts_.observer.on_evaluation(attempted_, result);
      parts_.observer.on_line(fmt::format("epoch {}: test accuracy {:.2f} %, test loss {:.4f}{}",
                                          position_.epoch, 100 * result.accuracy, result.loss,
                                          perplexity(*parts_.data.test, result)));
    }
    const bool due = options_.checkpoint_every > 0 && attempted_ % options_.checkpoint_every == 0;
    const bool last = finished() || stop;
    if (due || last) not_saved = save(last ? Retry::once : Retry::never);
  }

  EndReport end;
  end.last = make_report(whole, lr);
  const Evaluation result = evaluate();
  parts_.observer.on_evaluation(attempted_, result);
  end.test_accuracy = result.accuracy;
  end.test_loss = result.loss;
  require_equal_replicas(parts_.communicator, parameters());
  end.parameters_hash = hex64(hash_parameters(parameters()));
  end.seconds = seconds_since(start);
  if (last_saved_step_ == attempted_ && is_last_checkpoint_gone()) {
    last_saved_step_ = -1;
    not_saved = save(Retry::once);
  }
  end.checkpoint = last_checkpoint_;
  end.checkpoint_is_current = last_saved_step_ == attempted_;
  if (!end.checkpoint_is_current) end.checkpoint_failure = not_saved;
  end.stopped = stop && !finished();
  return end;
}

void Trainer::run_step() {
  take_step(parse_schedule(options_.lr_schedule, options_.lr, total_steps()).at(attempted_));
}

Trainer::Step Trainer::take_step(double lr) {
  Step step;
  const auto start = Clock::now();
  const std::int64_t bytes_before = parts_.meter.total().bytes_sent;
  const double arithmetic_before = reducer_->arithmetic_seconds();
  step.compressed = compresses() && next_transmission() == Transmission::compressed;
  const RankBatch batch = next_step();
  step.samples = batch.total;
  step.loss = forward_backward(batch);
  // Before, waiting hides behind backward.
  const double waited_before = parts_.meter.waited();
  const Verdict verdict = arrival_->finish(StepEnd::idle);
  step.waited = parts_.meter.waited() - waited_before;
  if (verdict.warning) {
    parts_.observer.on_rank_warning(parts_.communicator.rank(), *verdict.warning);
  }
  if (verdict.committed()) {
    step.clip_scale = update(lr);
  } else {
    skip(verdict, step.loss);
  }
  ++attempted_;
  step.epoch_ended = batch.next.epoch != position_.epoch;
  position_ = batch.next;
  step.stop = verdict.vote != 0;
  step.bytes_sent = parts_.meter.total().bytes_sent - bytes_before;
  step.seconds = seconds_since(start);
  if (optimizer_device_.queue->on_host()) {
    step.arithmetic = reducer_->arithmetic_seconds() - arithmetic_before;
  }
  return step;
}

bool Trainer::compresses() const {
  const auto codes = [](const CodecOptions& codec) {
    return !std::holds_alternative<Uncompressed>(codec);
  };
  return codes(compression_.codec) ||
         (compression_.gradient_codec && codes(*compression_.gradient_codec));
}

Transmission Trainer::next_transmission() const {
  return transmission_of(compression_, committed_, optimizer_->plan(committed_).transmission);
}

bool Trainer::finished() const {
  return options_.steps > 0 ? attempted_ >= options_.steps : position_.epoch >= options_.epochs;
}

std::int64_t Trainer::total_steps() const {
  if (options_.steps > 0) return options_.steps;
  const std::int64_t whole_epochs = std::max<std::int64_t>(options_.epochs - position_.epoch, 0);
  const std::int64_t size = order_.dataset_size();
  const std::int64_t done =
      (position_.consumed + layout_.samples_per_step() - 1) / layout_.samples_per_step();
  return attempted_ + whole_epochs * steps_per_epoch(size, layout_) - done;
}

// Begins a step: its samples, and the ranks' question whether anybody wants to stop.
RankBatch Trainer::next_step() {
  if (parts_.recorder) parts_.recorder->set_step(attempted_ + 1);
  const StepPlan plan = optimizer_->plan(committed_);
  transaction_->set_step({.step = attempted_,
                          .seed = options_.seed,
                          .quantity = plan.quantity,
                          .transmission = next_transmission(),
                          .estimate = plan.reads});
  arrival_->begin_step({.vote = parts_.stop_requested() ? 1 : 0});
  buffers_before_ = model_buffers_.clone();
  return partition_ ? partition_->next_batch(order_, position_, layout_)
                    : next_batch(order_, position_, layout_, parts_.communicator.rank());
}

// In float32 at least: a loss over bfloat16 logits would lose its sum.
at::Tensor Trainer::logits(const Batch& batch) const {
  const ComputeIn scope(precision_, buckets_->parameters().front().tensor.device().type());
  const at::Tensor logits = parts_.model.forward(batch.input);
  return dtype_ == at::kDouble ? logits : logits.to(at::kFloat);
}

// This rank's sum of its samples' losses, each the mean over its targets. Gradients are weighted so
// that their mean over ranks is the mean over all samples of the step, however many each rank has.
// In double, where the model is: the host reads it when it reports.
at::Tensor Trainer::forward_backward(const RankBatch& batch) {
  at::Tensor sum =
      at::zeros({}, parameters().front().tensor.options().dtype(at::kDouble).requires_grad(false));
  const auto targets = static_cast<double>(parts_.data.train->targets_per_sample());
  const double weight =
      static_cast<double>(layout_.world_size) / static_cast<double>(batch.total) / targets;
  for (std::size_t i = 0; i < batch.micro_batches.size(); ++i) {
    if (batch.micro_batches[i].empty()) continue;
    std::optional<HeldBack> all_but_the_last;
    if (i + 1 < batch.micro_batches.size()) all_but_the_last.emplace(*arrival_);
    const auto start = Clock::now();
    const Batch samples =
        to_device(parts_.data.train->batch(batch.micro_batches[i], dtype_), sum.device());
    begin_forward(*parts_.model.module, {.seed = options_.seed,
                                         .step = attempted_,
                                         .rank = parts_.communicator.rank(),
                                         .micro_batch = static_cast<std::int64_t>(i)});
    const at::Tensor loss = loss_sum(logits(samples), samples.target);
    const auto backward_start = Clock::now();
    (loss * weight).backward();
    sum.add_(loss.detach().to(at::kDouble) / targets);
    if (parts_.trace) {
      parts_.trace->span("compute", "forward", start, backward_start);
      parts_.trace->span("compute", "backward", backward_start, Clock::now());
    }
  }
  return sum;
}

double Trainer::update(double lr) {
  StepParameters step{.lr = lr, .gradient_scale = 1, .committed_step = committed_};
  if (options_.clip_norm > 0) {
    step.gradient_scale = clip_scale(
        std::sqrt(squared_norm(buckets_->buckets(), optimizer_device_)), options_.clip_norm);
  }
  const auto start = Clock::now();
  const torch::NoGradGuard no_grad;
  for (Bucket& bucket : buckets_->buckets()) optimizer_->after_reduce(bucket, step);
  if (const auto news = optimizer_->end_step(buckets_->buckets(), committed_)) {
    parts_.observer.on_line(*news);
  }
  if (parts_.trace) parts_.trace->span("compute", "update", start, Clock::now());
  ++committed_;
  skipped_in_a_row_ = 0;
  return step.gradient_scale;
}

void Trainer::skip(const Verdict& verdict, const at::Tensor& loss) {
  ++skipped_;
  // Forward has put the step's samples, finite or not, into running statistics.
  model_buffers_.take_back(buffers_before_);
  ++skipped_in_a_row_;
  if (skipped_in_a_row_ > 1 && skipped_in_a_row_ < kMaximumSkipsInARow) return;
  const std::string what =
      verdict.abandoned  ? *verdict.abandoned
      : verdict.reverted ? *verdict.reverted + " was not finite in a step that sent nothing"
                         : fmt::format("the gradient of {} is not finite{}", *verdict.non_finite,
                                       where_not_finite(parts_.communicator, loss.item<double>()));
  if (skipped_in_a_row_ == 1) {
    parts_.observer.on_line(fmt::format("step {} was rolled back: {}", attempted_ + 1, what));
    return;
  }
  throw AgreedError(ExitCode::internal,
                    fmt::format("{} steps in a row were rolled back: {}; lower the learning rate, "
                                "clip, or check the data",
                                skipped_in_a_row_, what));
}

StepReport Trainer::make_report(const Interval& interval, double lr) {
  StepReport report;
  const auto steps = static_cast<double>(std::max<std::int64_t>(interval.steps, 1));
  report.step = attempted_;
  report.total_steps = total_steps();
  report.epoch =
      static_cast<double>(position_.epoch) +
      static_cast<double>(position_.consumed) / static_cast<double>(order_.dataset_size());
  report.lr = lr;
  if (interval.seconds > 0) {
    report.samples_per_second = static_cast<double>(interval.samples) / interval.seconds;
  }
  report.seconds_left =
      static_cast<double>(report.total_steps - report.step) * interval.seconds / steps;
  report.skipped = skipped_;
  report.steps = interval.steps;
  report.compressed_steps = interval.compressed_steps;
  report.step_seconds = interval.seconds / steps;
  report.arithmetic_seconds = interval.arithmetic / steps;
  report.waited_seconds = interval.waited / steps;
  report.clip_scale = interval.steps > 0 ? interval.clip_scales / steps : 1;
  report.bytes_wire = static_cast<double>(interval.bytes_sent) / steps;
  double bytes = 0;
  for (const Bucket& bucket : buckets_->buckets()) {
    bytes += static_cast<double>(bucket.parameter_numel()) *
             static_cast<double>(bucket.gradient.element_size());
  }
  report.bytes_dense = ring_bytes(bytes, parts_.communicator.size());
  // After a rollback the buckets hold no estimate.
  const double norm =
      skipped_in_a_row_ > 0 ? 0 : std::sqrt(squared_norm(buckets_->buckets(), optimizer_device_));
  if (norm > 0) report.residual_ratio = residual_norm() / norm;
  // The loss, and each rank's busy time in its own place.
  std::vector<double> sums(1 + static_cast<std::size_t>(parts_.communicator.size()), 0.0);
  if (interval.loss.defined()) sums[0] = interval.loss.item<double>();
  sums[1 + static_cast<std::size_t>(parts_.communicator.rank())] =
      interval.seconds - interval.waited;
  sums = all_reduce_sum(parts_.communicator, std::move(sums));
  report.loss = sums[0] / static_cast<double>(std::max<std::int64_t>(interval.samples, 1));
  const SlowestRank slowest = slowest_rank({sums.begin() + 1, sums.end()});
  report.slowest_rank = slowest.rank;
  report.slowest_ratio = slowest.ratio;
  return report;
}

void Trainer::tell_of_slow_rank(const StepReport& report, double seconds) {
  // What the others lose to it: they wait while it is busy.
  const double lost = seconds * (1 - 1 / report.slowest_ratio);
  std::optional<int> slow;
  if (report.slowest_ratio > kSlowRatio && lost > kSlowSeconds) slow = report.slowest_rank;
  if (slow == slow_rank_) return;
  parts_.observer.on_line(
      slow ? fmt::format("rank {} is slow: busy {:.1f} times as long as the others, which wait for "
                         "it; see what its machine does",
                         *slow, report.slowest_ratio)
           : fmt::format("rank {} is as fast as the others again", *slow_rank_));
  slow_rank_ = slow;
}

double Trainer::residual_norm() {
  const torch::NoGradGuard no_grad;
  // Of what the last step exchanged.
  const bool of_gradients = compression_.gradient_codec && committed_ > 0 &&
                            optimizer_->plan(committed_ - 1).quantity == Quantity::gradient;
  SquaredResiduals squares(of_gradients ? "gradient_residual/" : "residual/");
  for (const Bucket& bucket : buckets_->buckets()) reducer_->visit(bucket, squares);
  return std::sqrt(squares.sum);
}

Evaluation Trainer::evaluate() {
  const torch::NoGradGuard no_grad;
  const Doing evaluating(parts_.recorder, "evaluating");
  const Dataset& data = *parts_.data.test;
  const std::vector<at::Tensor> own = model_buffers_.clone();
  model_buffers_.assign(model_buffers_.mean(parts_.communicator));
  parts_.model.module->eval();
  const IndexRange share =
      share_of_rank(data.size(), parts_.communicator.size(), parts_.communicator.rank());
  double correct = 0;
  double loss = 0;
  const std::int64_t at_once =
      std::clamp<std::int64_t>(kEvaluationTargets / data.targets_per_sample(), 1, kEvaluationBatch);
  for (std::int64_t begin = share.begin; begin < share.end; begin += at_once) {
    std::vector<std::int64_t> indices(
        static_cast<std::size_t>(std::min(at_once, share.end - begin)));
    std::iota(indices.begin(), indices.end(), begin);
    const Batch batch =
        to_device(data.batch(indices, dtype_), parameters().front().tensor.device());
    const at::Tensor guesses = logits(batch);
    loss += loss_sum(guesses, batch.target).item<double>();
    correct += guesses.argmax(-1).eq(batch.target).sum().item<double>();
  }
  parts_.model.module->train();
  model_buffers_.assign(own);
  const auto sums = all_reduce_sum(parts_.communicator, {loss, correct});
  const auto count = static_cast<double>(data.size() * data.targets_per_sample());
  return {sums[0] / count, sums[1] / count};
}

void Trainer::visit(StateVisitor& visitor) {
  visitor.counter("attempted_steps", attempted_);
  visitor.counter("committed_steps", committed_);
  visitor.counter("skipped_steps", skipped_);
  visitor.counter("skipped_in_a_row", skipped_in_a_row_);
  visitor.counter("epoch", position_.epoch);
  visitor.counter("consumed_samples", position_.consumed);
  layouts_.visit(buckets_->buckets(), visitor);
  optimizer_->visit(visitor);
  for (const Bucket& bucket : buckets_->buckets()) {
    reducer_->visit(bucket, visitor);
    if (before_) before_->visit(bucket, visitor);
  }
  model_buffers_.visit_own(visitor);
}

std::vector<std::string> Trainer::describe_compression() const {
  const std::int64_t until_start = std::max<std::int64_t>(compression_.start_iter - committed_, 0);
  auto lines = thinwire::describe_compression(buckets_->buckets(), *reducer_, compression_.policy,
                                              attempted_ + 1 + until_start);
  if (compression_.gradient_codec) {
    const auto codec = make_codec(*compression_.gradient_codec);
    lines.push_back(fmt::format("that is momentum; gradients, in steps that exchange them: {}",
                                codec ? codec->describe() : "uncompressed"));
  }
  return lines;
}

}  // namespace thinwire
