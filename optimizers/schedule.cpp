#include "optimizers/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"

namespace thinwire {
namespace {

constexpr std::int64_t most_steps = 1'000'000'000;  // as --steps

// The fraction of the base rate that is left in a decay's `step`-th step.
double fraction(const ConstantRate&, std::int64_t, std::int64_t) {
  return 1;
}

double fraction(const StepDecay& decay, std::int64_t step, std::int64_t) {
  return std::pow(decay.factor, static_cast<double>(step / decay.every));
}

double fraction(const CosineDecay& decay, std::int64_t step, std::int64_t warmup) {
  const std::int64_t length = std::max<std::int64_t>(1, decay.total_steps - warmup);
  const double progress = static_cast<double>(std::min(step, length)) / static_cast<double>(length);
  return decay.final + (1 - decay.final) * (1 + std::cos(std::numbers::pi * progress)) / 2;
}

Schedule::Decay parse_decay(ChoiceReader& spec, std::int64_t total_steps) {
  if (spec.name() == "constant") return ConstantRate{};
  if (spec.name() == "step") {
    StepDecay decay;
    decay.every = spec.integer("every", 0, 1, most_steps);
    decay.factor = spec.number("factor", decay.factor, 0, 1);
    if (decay.every == 0) {
      throw UsageError("--lr-schedule step lacks 'every'; write step:every=STEPS");
    }
    return decay;
  }
  if (spec.name() == "cosine") {
    return CosineDecay{.final = spec.number("final", 0, 0, 1), .total_steps = total_steps};
  }
  spec.unknown_name({"constant", "step", "cosine"});
}

}  // namespace

double Schedule::at(std::int64_t step) const {
  check(step >= 0, "a step counts from 0");
  if (step < warmup_) {
    return base_lr_ * static_cast<double>(step + 1) / static_cast<double>(warmup_);
  }
  return base_lr_ *
         std::visit([&](const auto& decay) { return fraction(decay, step - warmup_, warmup_); },
                    decay_);
}

Schedule parse_schedule(const std::string& text, double base_lr, std::int64_t total_steps) {
  ChoiceReader spec("--lr-schedule", text);
  const Schedule::Decay decay = parse_decay(spec, total_steps);
  const std::int64_t warmup = spec.integer("warmup", 0, 0, most_steps);
  spec.done();
  return Schedule(base_lr, decay, warmup);
}

}  // namespace thinwire
