#include "runtime/step/arrival.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

// Steps in which gradients are only counted.
constexpr std::int64_t kCountedSteps = 2;

// A NaN of this shape that occupies one element; autograd does not know it as a view.
at::Tensor make_stand_in(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const at::Tensor nan = at::full({1}, std::numeric_limits<double>::quiet_NaN(), options);
  const std::vector<std::int64_t> strides(sizes.size(), 0);
  at::Tensor stand_in = at::empty({0}, options);
  stand_in.set_(nan.storage(), 0, sizes, strides);
  return stand_in;
}

// Nobody has written to it, as far as the host can see.
bool is_untouched(const at::Tensor& stand_in) {
  if (stand_in.numel() == 0 || !stand_in.is_cpu()) return true;
  return stand_in.scalar_type() == at::kDouble ? std::isnan(*stand_in.const_data_ptr<double>())
                                               : std::isnan(*stand_in.const_data_ptr<float>());
}

}  // namespace

// What hangs on each parameter's accumulator. Hooks before a node cannot be taken off, so they know
// by `owner` whether the arrival is still there.
struct GradientArrival::Hooks {
  struct Owner {
    GradientArrival* arrival;
  };

  struct Before final : torch::autograd::FunctionPreHook {
    Before(std::shared_ptr<Owner> hook_owner, std::size_t hook_parameter)
        : owner(std::move(hook_owner)), parameter(hook_parameter) {}
    torch::autograd::variable_list operator()(
        const torch::autograd::variable_list& gradients) override {
      if (owner->arrival == nullptr || !gradients[0].defined()) return gradients;
      if (owner->arrival->arriving(parameter)) return gradients;
      return {at::Tensor()};  // the accumulator leaves grad() alone
    }
    std::shared_ptr<Owner> owner;
    std::size_t parameter;
  };

  struct Entry {
    std::shared_ptr<torch::autograd::Node> accumulator;  // lives as long as it is held here
    std::uintptr_t after = 0;
  };

  explicit Hooks(GradientArrival& arrival) : owner(std::make_shared<Owner>(&arrival)) {
    const auto& parameters = arrival.buckets_.parameters();
    // Before the first hook: nothing is to be undone where one is refused.
    for (const Parameter& parameter : parameters) require_free(parameter);
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      at::Tensor parameter = parameters[i].tensor;
      // A frozen parameter gets its hooks too, for the day when it thaws.
      const bool frozen = !parameter.requires_grad();
      if (frozen) parameter.set_requires_grad(true);
      Entry entry;
      entry.accumulator = torch::autograd::impl::grad_accumulator(parameter);
      entry.accumulator->add_pre_hook(std::make_unique<Before>(owner, i));
      entry.after =
          entry.accumulator->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(
              [&arrival, i](const torch::autograd::variable_list& outputs,
                            const torch::autograd::variable_list& inputs) {
                if (inputs[0].defined()) arrival.arrived(i);
                return outputs;
              }));
      if (frozen) parameter.set_requires_grad(false);
      entries.push_back(std::move(entry));
    }
  }
  ~Hooks() {
    owner->arrival = nullptr;
    for (auto& entry : entries) entry.accumulator->del_post_hook(entry.after);
  }
  Hooks(const Hooks&) = delete;
  Hooks& operator=(const Hooks&) = delete;

  // Two arrivals would both claim its grad().
  static void require_free(const Parameter& parameter) {
    const auto accumulator = torch::autograd::impl::try_get_grad_accumulator(parameter.tensor);
    if (!accumulator) return;
    for (const auto& hook : accumulator->pre_hooks()) {
      const auto* other = dynamic_cast<const Before*>(hook.get());
      if (other == nullptr || other->owner->arrival == nullptr) continue;
      throw UsageError(fmt::format(
          "the gradient of {} is reduced by another object already; give a parameter to one "
          "DataParallel, one that models share to an object of its own",
          parameter.name));
    }
  }

  std::shared_ptr<Owner> owner;
  std::vector<Entry> entries;
};

void GradientArrival::require_free(const std::vector<Parameter>& parameters) {
  for (const Parameter& parameter : parameters) Hooks::require_free(parameter);
}

GradientArrival::GradientArrival(GradientBuckets& buckets, StepTransaction& transaction,
                                 Counting counting)
    : buckets_(buckets),
      transaction_(transaction),
      counting_(counting),
      weighting_(counting == Counting::learned ? Weighting::undecided : Weighting::equal),
      touched_(buckets.parameters().size()),
      frozen_(buckets.parameters().size()),
      arrivals_(buckets.parameters().size()),
      most_arrivals_(buckets.parameters().size()),
      missing_(buckets.buckets().size()),
      in_flight_(buckets.parameters().size()),
      hooks_(std::make_unique<Hooks>(*this)) {
  // What is there belongs to no step of this object; it may be the alias of an earlier one's.
  detach_all();
}

GradientArrival::~GradientArrival() = default;

void GradientArrival::begin_step(const OpeningWord& word) {
  const std::lock_guard lock(mutex_);
  open_step(word);
}

void GradientArrival::open_step(const OpeningWord& word) {
  if (transaction_.is_open()) return;
  freeze_and_thaw();
  clear_step();
  transaction_.begin(word);
}

// A parameter that requires no gradient is frozen: it rests, as a whole, until it thaws. What else
// its slice's layout says comes back then.
void GradientArrival::freeze_and_thaw() {
  std::map<std::size_t, std::vector<SliceLayout>> changed;  // by bucket
  for (std::size_t i = 0; i < frozen_.size(); ++i) {
    const bool frozen = !buckets_.parameters()[i].tensor.requires_grad();
    if (frozen == frozen_[i]) continue;
    frozen_[i] = frozen;
    const auto place = buckets_.place(i);
    const Bucket& bucket = buckets_.buckets()[place.bucket];
    auto& parts = changed[place.bucket];
    if (parts.empty()) parts = parts_of(bucket.layout, bucket.slices.size());
    parts[place.slice].frozen = frozen;
  }
  for (auto& [index, parts] : changed) {
    const Bucket& bucket = buckets_.buckets()[index];
    transaction_.relayout(index,
                          Layout(bucket.slices, std::move(parts), bucket.layout.version() + 1));
  }
}

void GradientArrival::clear_step() {
  std::fill(touched_.begin(), touched_.end(), false);
  std::fill(arrivals_.begin(), arrivals_.end(), 0);
  std::fill(missing_.begin(), missing_.end(), 0);
  for (std::size_t i = 0; i < touched_.size(); ++i) {
    if (!frozen_[i]) ++missing_[buckets_.place(i).bucket];
  }
}

const std::string& GradientArrival::name(std::size_t parameter) const {
  return buckets_.parameters()[parameter].name;
}

bool GradientArrival::is_dropped(std::size_t parameter) const {
  return touched_[parameter] && !buckets_.parameters()[parameter].tensor.grad().defined();
}

bool GradientArrival::sends_early() const {
  if (weighting_ == Weighting::by_samples) return false;  // the weight is known at the end only
  return counting_ == Counting::declared || steps_ >= kCountedSteps;
}

std::int64_t GradientArrival::expected(std::size_t parameter) const {
  return std::max<std::int64_t>(most_arrivals_[parameter], 1);
}

bool GradientArrival::arriving(std::size_t parameter) {
  const std::lock_guard lock(mutex_);
  if (ignored_ > 0) return false;
  open_step({});
  if (frozen_[parameter]) {
    throw UsageError(fmt::format(
        "{} was thawed in the middle of a step; freeze and thaw parameters after finish()",
        name(parameter)));
  }
  if (is_dropped(parameter)) begin_anew_what_was_dropped();
  if (transaction_.was_handed_over(buckets_.place(parameter).bucket)) {
    refuse_another_gradient(parameter);
  }
  attach_for_new_gradient(parameter);
  return true;
}

void GradientArrival::refuse_another_gradient(std::size_t parameter) const {
  throw UsageError(fmt::format(
      "another gradient of {} arrived after it had been sent; call finish() after each backward(), "
      "accumulate() before all but the last, and ignore() around those of another model",
      name(parameter)));
}

// The user's zero_grad() has dropped what arrived before in this step.
void GradientArrival::begin_anew_what_was_dropped() {
  bool was_sent = false;
  for (std::size_t b = 0; b < missing_.size(); ++b) was_sent |= transaction_.was_handed_over(b);
  if (was_sent) {
    for (std::size_t i = 0; i < touched_.size(); ++i) {
      if (touched_[i] && !is_dropped(i)) refuse_another_gradient(i);
    }
    restart();
    return;
  }
  for (std::size_t i = 0; i < touched_.size(); ++i) {
    if (is_dropped(i)) touched_[i] = false;
  }
}

void GradientArrival::restart() {
  for (std::size_t b = 0; b < missing_.size(); ++b) {
    if (!transaction_.was_handed_over(b)) hand_over(b);
  }
  try {
    const Verdict verdict = transaction_.finish({.end = StepEnd::superseded});
    check(!verdict.committed(), "a step that begins anew was rolled back");
  } catch (...) {
    detach_all();
    throw;
  }
  transaction_.begin({});
  // What came before counts, so that the next time nothing is sent for nothing.
  std::vector<std::int64_t> arrivals = arrivals_;
  clear_step();
  arrivals_ = std::move(arrivals);
}

void GradientArrival::attach_for_new_gradient(std::size_t parameter) {
  const c10::NoGradGuard no_grad;
  if (touched_[parameter] && buckets_.attached(parameter)) return;
  const at::Tensor& gradient = buckets_.parameters()[parameter].tensor.grad();
  if (gradient.defined() && !buckets_.attached(parameter)) {
    take_from_grad(parameter);  // assigned by the user: what arrives is added to it
  } else {
    buckets_.zero(parameter);
    buckets_.attach(parameter);
  }
  touched_[parameter] = true;
}

void GradientArrival::take_from_grad(std::size_t parameter) {
  const c10::NoGradGuard no_grad;
  const at::Tensor assigned = buckets_.parameters()[parameter].tensor.grad().detach();
  if (assigned.sizes() != buckets_.parameters()[parameter].tensor.sizes()) {
    throw UsageError(fmt::format("the gradient that was assigned to {} has another shape than it",
                                 name(parameter)));
  }
  buckets_.attach(parameter);
  buckets_.parameters()[parameter].tensor.mutable_grad().copy_(
      assigned.is_sparse() ? assigned.to_dense() : assigned);
}

void GradientArrival::arrived(std::size_t parameter) {
  const std::lock_guard lock(mutex_);
  // backward(create_graph=true) makes a new tensor instead of adding to the old one.
  if (!buckets_.attached(parameter)) take_from_grad(parameter);
  if (held_back_ > 0) return;
  ++arrivals_[parameter];
  if (arrivals_[parameter] == expected(parameter)) {
    --missing_[buckets_.place(parameter).bucket];
    if (sends_early()) hand_over_complete_buckets();
  }
}

void GradientArrival::hand_over_complete_buckets() {
  for (std::size_t b = 0; b < missing_.size(); ++b) {
    if (missing_[b] == 0 && !transaction_.was_handed_over(b)) hand_over(b);
  }
}

void GradientArrival::hand_over(std::size_t bucket) {
  std::vector<bool> used(buckets_.buckets()[bucket].slices.size());
  for (std::size_t i = 0; i < touched_.size(); ++i) {
    if (buckets_.place(i).bucket != bucket) continue;
    used[buckets_.place(i).slice] = touched_[i];
    if (touched_[i]) {
      put_away(i);
    } else {
      buckets_.zero(i);  // what got no gradient counts as zero
    }
  }
  transaction_.hand_over(bucket, used);
}

// What is in the buffer is the reducer's until `finish`: reading or clipping it would give what
// timing decides. Until then grad() is a NaN of the right shape that occupies one element, so that
// reading it shows and writing to it is an error of libtorch's.
void GradientArrival::put_away(std::size_t parameter) {
  const at::Tensor& tensor = buckets_.parameters()[parameter].tensor;
  at::Tensor& stand_in = in_flight_[parameter];
  if (!stand_in.defined() || !is_untouched(stand_in)) {
    const Bucket& bucket = buckets_.buckets()[buckets_.place(parameter).bucket];
    stand_in = make_stand_in(tensor.sizes(), bucket.gradient.options());
  }
  tensor.mutable_grad() = stand_in;
}

// Before buckets are sent at the end of a step: grad() has the last word.
void GradientArrival::take_what_was_assigned() {
  for (std::size_t i = 0; i < touched_.size(); ++i) {
    if (!buckets_.parameters()[i].tensor.requires_grad()) continue;
    if (transaction_.is_open() && transaction_.was_handed_over(buckets_.place(i).bucket)) continue;
    const bool defined = buckets_.parameters()[i].tensor.grad().defined();
    if (defined && !buckets_.attached(i)) {
      open_step({});
      take_from_grad(i);
      touched_[i] = true;
    } else if (transaction_.is_open() && !defined) {
      touched_[i] = false;
    }
  }
}

// What the user has done to a gradient between backward and finish() would be lost.
std::optional<std::string> GradientArrival::changed_after_it_was_sent() const {
  for (std::size_t i = 0; i < touched_.size(); ++i) {
    if (!touched_[i] || !transaction_.was_handed_over(buckets_.place(i).bucket)) continue;
    const at::Tensor& gradient = buckets_.parameters()[i].tensor.grad();
    if (gradient.is_same(in_flight_[i]) && is_untouched(gradient)) continue;
    return fmt::format(
        "the gradient of {} was {} after backward() had sent it; change gradients after finish()",
        name(i), gradient.defined() ? "changed" : "dropped");
  }
  return std::nullopt;
}

Verdict GradientArrival::finish(StepEnd without) {
  // Where nobody says how many samples there are, all ranks weigh alike.
  const bool says = without == StepEnd::unused;
  return end_step({.end = without}, {says ? Weighting::equal : Weighting::undecided, 0});
}

Verdict GradientArrival::finish_weighted(std::int64_t samples) {
  check(samples >= 0, "a number of samples");
  return end_step({.end = samples > 0 ? StepEnd::unused : StepEnd::idle},
                  {Weighting::by_samples, samples});
}

Verdict GradientArrival::abandon(const std::string& why) {
  return end_step({.end = StepEnd::abandoned, .why = why}, {});
}

// `closing.end` is what it means if no gradient is new.
Verdict GradientArrival::end_step(const StepClosing& closing, const SamplesWord& samples) {
  const c10::NoGradGuard no_grad;
  StepClosing actual = closing;
  std::optional<std::string> wrong;
  {
    const std::lock_guard lock(mutex_);
    if (closing.end != StepEnd::abandoned) take_what_was_assigned();
    open_step({});
    bool any_is_new = false;
    for (std::size_t i = 0; i < touched_.size(); ++i) any_is_new |= touched_[i] && !is_dropped(i);
    if (closing.end != StepEnd::abandoned) {
      if (any_is_new) {
        actual.end = StepEnd::finished;
        wrong = changed_after_it_was_sent();
      }
      if (!wrong && weighting_ != Weighting::undecided &&
          samples.weighting != Weighting::undecided && samples.weighting != weighting_) {
        wrong =
            "finish() and finish(samples) were both called; call one of them in all steps, "
            "finish(0) where there are no samples";
      }
      if (wrong) actual = {StepEnd::abandoned, *wrong};
    }
    const bool is_silent = transaction_.step().transmission == Transmission::silent;
    if (weighting_ != Weighting::equal && !is_silent) {
      transaction_.weigh(wrong ? SamplesWord{} : samples);
    }
    for (std::size_t b = 0; b < missing_.size(); ++b) {
      if (!transaction_.was_handed_over(b)) hand_over(b);
    }
  }
  std::optional<Verdict> verdict;
  try {
    verdict = transaction_.finish(actual);
  } catch (...) {
    detach_all();
    throw;
  }
  if (weighting_ == Weighting::undecided) weighting_ = transaction_.agreed_weighting();
  attach_estimates(*verdict);
  if (verdict->committed()) {
    for (std::size_t i = 0; i < arrivals_.size(); ++i) {
      if (counting_ == Counting::learned) {
        most_arrivals_[i] = std::max(most_arrivals_[i], arrivals_[i]);
      }
    }
    ++steps_;
  }
  if (wrong) throw UsageError(*wrong);
  return *verdict;
}

void GradientArrival::detach_all() {
  for (std::size_t i = 0; i < touched_.size(); ++i) buckets_.detach(i);
}

void GradientArrival::attach_estimates(const Verdict& verdict) {
  for (std::size_t i = 0; i < touched_.size(); ++i) {
    // Nobody shall take for a gradient what is in the buffer of a coded one.
    const auto place = buckets_.place(i);
    const Bucket& bucket = buckets_.buckets()[place.bucket];
    const bool is_coded = bucket.undecoded != nullptr;
    if (verdict.committed() && !bucket.rests(place.slice) && !is_coded) {
      buckets_.attach(i);
    } else {
      buckets_.detach(i);
    }
  }
}

}  // namespace thinwire
