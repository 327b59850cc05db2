#include "runtime/data_parallel.h"

#include <ATen/MemoryOverlap.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/torch.h>

#include <algorithm>
#include <set>

#include "collectives/agreement.h"
#include "collectives/base/error.h"
#include "collectives/base/team.h"
#include "collectives/base/text.h"
#include "collectives/compression/parse.h"
#include "runtime/report/describe_compression.h"

namespace thinwire {
namespace {

BucketOptions bucket_options(const DataParallelOptions& options) {
  return {.bucket_bytes = options.bucket_bytes,
          .first_bucket_bytes = options.first_bucket_bytes,
          .weights = WeightStorage::untouched};
}

std::shared_ptr<Team> team_of(int threads) {
  if (threads < 1 || threads > 64) {
    throw UsageError(
        fmt::format("exchange_threads is {}; give 1 to 64, no more than are idle", threads));
  }
  return threads > 1 ? std::make_shared<Team>(threads) : nullptr;
}

bool is_fixed(const Parameter& parameter) {
  return parameter.tensor.defined() && !parameter.tensor.is_floating_point() &&
         !parameter.tensor.requires_grad();
}

std::vector<Parameter> fixed_ones(const std::vector<Parameter>& parameters) {
  std::vector<Parameter> fixed;
  std::copy_if(parameters.begin(), parameters.end(), std::back_inserter(fixed), is_fixed);
  return fixed;
}

std::vector<Parameter> trainable_ones(std::vector<Parameter> parameters) {
  std::erase_if(parameters, is_fixed);
  return parameters;
}

std::string describe(const std::string& name, const at::Tensor& tensor) {
  return fmt::format("{}: {} of {}, strides {}, on {}", name, toString(tensor.scalar_type()),
                     fmt::join(tensor.sizes(), " x "), fmt::join(tensor.strides(), ", "),
                     c10::DeviceTypeName(tensor.device().type(), /*lower_case=*/true));
}

std::string describe(const CompressionOptions& options) {
  return fmt::format("{}, feedback {}, eta {}, momentum {}, exchange {}, start_iter {}",
                     words_of(options.codec), name(options.feedback.kind),
                     options.feedback.eta ? fmt::format("{:g}", *options.feedback.eta) : "auto",
                     options.feedback.momentum, name(options.exchange), options.start_iter);
}

// A tensor of which two elements share memory cannot be written to.
void require_own_memory(const std::string& what, const at::Tensor& tensor) {
  if (at::has_internal_overlap(tensor) != at::MemOverlap::Yes) return;
  throw UsageError(fmt::format(
      "{} is expanded: several of its elements share memory; give it memory of its own, as "
      "tensor.contiguous() does",
      what));
}

}  // namespace

DataParallel::DataParallel(const torch::nn::Module& module, Communicator& communicator,
                           CompressionOptions compression, DataParallelOptions options)
    : DataParallel(parameters_of(module), ModelBuffers(module), communicator,
                   std::move(compression), {}, std::move(options)) {}

DataParallel::DataParallel(std::vector<Parameter> parameters, Communicator& communicator,
                           CompressionOptions compression, DataParallelOptions options)
    : DataParallel(std::move(parameters), ModelBuffers(), communicator, std::move(compression), {},
                   std::move(options)) {}

DataParallel::DataParallel(std::unique_ptr<GradientReducer> reducer,
                           const torch::nn::Module& module, Communicator& communicator,
                           DataParallelOptions options)
    : DataParallel(parameters_of(module), ModelBuffers(module), communicator, {},
                   {std::move(reducer), nullptr}, std::move(options)) {}

DataParallel::DataParallel(std::vector<Parameter> parameters, ModelBuffers module_buffers,
                           Communicator& communicator, CompressionOptions compression,
                           Reduction reduction, DataParallelOptions options)
    : options_(std::move(options)),
      meter_(std::make_shared<Meter>()),
      steps_(make_metered(communicator.split(0, communicator.rank()), meter_)),
      calls_(make_metered(communicator.split(0, communicator.rank()), meter_)),
      fixed_(fixed_ones(parameters)),
      module_buffers_(std::move(module_buffers)),
      compression_(std::move(compression)),
      device_{.queue = make_host_queue(team_of(options_.exchange_threads))},
      has_own_reducer_(reduction.reducer != nullptr) {
  build(trainable_ones(std::move(parameters)),
        has_own_reducer_ ? std::move(reduction) : make_reduction(compression_, device_));
  meet();
  committed_buffers_ = module_buffers_.clone();
  set_next_step();
}

// Each refers to those before it.
void DataParallel::build(std::vector<Parameter> parameters, Reduction reduction) {
  arrival_.reset();
  transaction_.reset();
  buckets_.emplace(std::move(parameters), bucket_options(options_));
  reduction_ = std::move(reduction);
  transaction_.emplace(buckets_->buckets(), *reduction_.reducer, *steps_,
                       StepParts{.before = reduction_.before.get()});
  arrival_.emplace(*buckets_, *transaction_, Counting::learned);
}

// What differs between ranks would later be a mean of things that do not belong together.
void DataParallel::meet() {
  std::vector<std::string> parameters, buffers, codings;
  std::vector<at::Tensor> tensors;
  for (const auto& parameter : buckets_->parameters()) {
    parameters.push_back(describe(parameter.name, parameter.tensor));
    tensors.push_back(parameter.tensor);
  }
  for (const auto& parameter : fixed_) {
    require_own_memory("parameter " + parameter.name, parameter.tensor);
    parameters.push_back(describe(parameter.name, parameter.tensor));
    tensors.push_back(parameter.tensor);
  }
  for (std::size_t i = 0; i < module_buffers_.tensors().size(); ++i) {
    const at::Tensor& buffer = module_buffers_.tensors()[i];
    require_own_memory("buffer " + module_buffers_.names()[i], buffer);
    buffers.push_back(describe(module_buffers_.names()[i], buffer));
    tensors.push_back(buffer);
  }
  for (const Bucket& bucket : buckets_->buckets()) {
    for (const SlicePlan& plan : reduction_.reducer->plan(bucket)) {
      codings.push_back(fmt::format("{}: {}", plan.name, plan.coding));
    }
  }
  require_same_everywhere(
      *calls_,
      {{"parameters", fmt::format("{}", fmt::join(parameters, "\n"))},
       {"buffers", fmt::format("{}", fmt::join(buffers, "\n"))},
       {"coding", fmt::format("{}", fmt::join(codings, "\n"))},
       {"compression", describe(resolve(compression_))},
       {"bucket_bytes", std::to_string(options_.bucket_bytes)},
       {"first_bucket_bytes", std::to_string(options_.first_bucket_bytes)},
       {"check_every", std::to_string(options_.check_every)},
       {"thinwire version", THINWIRE_VERSION}},
      "the ranks gave DataParallel different things; build the same model with the same options on "
      "every rank");
  broadcast_tensors(*calls_, tensors, 0);
}

void DataParallel::set_next_step() {
  transaction_->set_step({.step = attempted_,
                          .transmission = transmission_of(compression_, attempted_ - skipped_,
                                                          Transmission::compressed)});
}

Verdict DataParallel::finish() {
  return end_step([this] { return arrival_->finish(); });
}

Verdict DataParallel::finish(std::int64_t samples) {
  if (samples < 0) throw UsageError(fmt::format("finish({}): give 0 or more samples", samples));
  return end_step([&] { return arrival_->finish_weighted(samples); });
}

Verdict DataParallel::abandon(const std::string& why) {
  return end_step([&] { return arrival_->abandon(why); });
}

Verdict DataParallel::end_step(const std::function<Verdict()>& end) {
  Verdict verdict;
  try {
    verdict = end();
  } catch (const Error&) {
    roll_back();
    throw;
  }
  if (verdict.committed()) {
    committed_buffers_ = module_buffers_.clone();
    count_step();
    if (verdict.warning) warn(fmt::format("rank {}: {}", calls_->rank(), *verdict.warning));
  } else if (!verdict.superseded) {
    roll_back();
  }
  if (options_.check_every > 0 && verdict.committed() &&
      (attempted_ - skipped_) % options_.check_every == 0) {
    check_replicas();
  }
  return verdict;
}

void DataParallel::count_step() {
  ++attempted_;
  set_next_step();
}

void DataParallel::roll_back() {
  module_buffers_.take_back(committed_buffers_);
  ++skipped_;
  count_step();
}

void DataParallel::join(const std::function<void(const Verdict&)>& update) {
  require_between_steps();
  while (true) {
    arrival_->begin_step({.joined = 1});
    const auto& words = transaction_->opening_words();
    if (std::all_of(words.begin(), words.end(), [](const auto& word) { return word.joined; })) {
      transaction_->cancel();
      return;
    }
    const Verdict verdict = end_step([this] { return arrival_->finish(StepEnd::idle); });
    if (!verdict.superseded) update(verdict);
  }
}

at::Tensor DataParallel::step(torch::optim::LBFGS& optimizer,
                              const std::function<at::Tensor()>& closure) {
  if (!std::holds_alternative<Uncompressed>(compression_.codec) && calls_->rank() == 0 &&
      !std::exchange(warned_of_lbfgs_, true)) {
    warn(
        "LBFGS builds its curvature from differences of gradients, in which compression's errors "
        "are large: it stops far from the minimum; use no compression, or another optimizer");
  }
  return optimizer.step([&] {
    const at::Tensor loss = closure();
    const Verdict verdict = finish();
    if (!verdict.committed()) {
      throw AgreedError(
          ExitCode::internal,
          fmt::format("a step of LBFGS was rolled back ({}); start it anew from weights of before",
                      verdict.abandoned ? *verdict.abandoned
                                        : *verdict.non_finite + " has no finite gradient"));
    }
    return torch::full({}, mean(loss.item<double>()), loss.options().requires_grad(false));
  });
}

double DataParallel::mean(double value) {
  return all_reduce_sum(*calls_, {value}).front() / calls_->size();
}

void DataParallel::average_buffers() {
  module_buffers_.assign(module_buffers_.mean(*calls_));
  committed_buffers_ = module_buffers_.clone();
}

void DataParallel::on_rank_zero(const std::function<void()>& body) {
  std::string failure;
  std::exception_ptr error;
  if (calls_->rank() == 0) {
    try {
      body();
    } catch (const std::exception& thrown) {
      error = std::current_exception();
      failure =
          fmt::format("rank 0 failed while the others waited: {}", without_stack(thrown.what()));
    } catch (...) {
      error = std::current_exception();
      failure = "rank 0 failed while the others waited";
    }
  }
  // No deadline: rank 0 may be busy for as long as it likes. If it dies its end is noticed.
  at::Tensor length = torch::full({1}, static_cast<std::int64_t>(failure.size()), torch::kLong);
  calls_->broadcast(length, 0)->wait(Clock::now() + std::chrono::hours(24 * 365));
  if (length.item<std::int64_t>() == 0) return;
  failure = broadcast_text(*calls_, failure, 0);
  if (error) std::rethrow_exception(error);
  throw Error(ExitCode::internal, failure);
}

void DataParallel::check_replicas() {
  require_equal_replicas(*calls_, buckets_->parameters());
}

std::vector<std::string> DataParallel::describe_compression() const {
  const std::int64_t until_start =
      std::max<std::int64_t>(compression_.start_iter - (attempted_ - skipped_), 0);
  std::vector<std::string> lines = thinwire::describe_compression(
      buckets_->buckets(), *reduction_.reducer, compression_.policy, attempted_ + 1 + until_start);
  if (const auto warning = divergence_warning(resolve(compression_))) {
    lines.push_back("warning: " + *warning);
  }
  return lines;
}

void DataParallel::visit(StateVisitor& visitor) {
  require_between_steps();
  visitor.counter("attempted", attempted_);
  visitor.counter("skipped", skipped_);
  layouts_.visit(buckets_->buckets(), visitor);
  for (const Bucket& bucket : buckets_->buckets()) {
    reduction_.reducer->visit(bucket, visitor);
    if (reduction_.before) reduction_.before->visit(bucket, visitor);
  }
  set_next_step();  // the visitor may have filled the counters in
}

std::vector<std::string> DataParallel::replace_parameters(const Replacement& replacement) {
  require_between_steps();
  if (has_own_reducer_) {
    throw UsageError(
        "parameters cannot be replaced under a reducer of your own, which would have to be built "
        "anew; give compression options instead");
  }
  if (arrival_->is_held_back()) {
    throw UsageError(
        "parameters cannot be replaced while gradients accumulate; let what accumulate() and "
        "ignore() returned end before");
  }
  std::vector<Parameter> now = replaced(buckets_->parameters(), replacement);
  GradientBuckets::require_possible(now);
  GradientArrival::require_free(replacement.added);
  std::string parameters;
  for (const auto& [name, tensor] : now) parameters += describe(name, tensor) + "\n";
  require_same_everywhere(
      *calls_, {{"parameters", parameters}},
      "the ranks replaced different parameters; replace the same ones by the same on every rank");
  const auto show = [this](StateVisitor& visitor) {
    for (const Bucket& bucket : buckets_->buckets()) {
      reduction_.reducer->visit(bucket, visitor);
      if (reduction_.before) reduction_.before->visit(bucket, visitor);
    }
  };
  CarriedState state(show, *calls_);
  const std::vector<std::string> sentences = state.replace(replacement);
  auto parts = parts_by_name(buckets_->buckets());
  for (const std::string& name : replacement.removed) parts.erase(name);
  build(std::move(now), make_reduction(compression_, device_));
  meet();
  thinwire::relayout(parts, buckets_->buckets(), *transaction_);
  state.fill(show);
  set_next_step();
  return sentences;
}

void DataParallel::relayout(const std::map<std::string, SliceLayout>& parts) {
  require_between_steps();
  thinwire::relayout(parts, buckets_->buckets(), *transaction_);
}

void DataParallel::require_between_steps() const {
  if (!transaction_->is_open()) return;
  throw UsageError(
      "a step is open: gradients have arrived that no finish() has taken; end it with finish() or "
      "abandon(), and ignore() those of other models");
}

void DataParallel::warn(const std::string& text) const {
  if (options_.warn) {
    options_.warn(text);
  } else {
    TORCH_WARN("thinwire: ", text);
  }
}

}  // namespace thinwire
