// The learning rate of every step.
#pragma once

#include <cstdint>
#include <string>
#include <variant>

namespace thinwire {

struct ConstantRate {};

// torch's StepLR: multiplied by `factor` after every `every` steps.
struct StepDecay {
  std::int64_t every = 1;  // steps, at least 1
  double factor = 0.1;
};

// torch's CosineAnnealingLR in closed form: half a cosine from the base rate at the first step to
// `final` times the base rate, reached when all of the run's steps are done and kept from then on.
struct CosineDecay {
  double final = 0;              // fraction of the base rate
  std::int64_t total_steps = 1;  // the whole run's, warm-up included
};

// A learning rate as a pure function of the step: `warmup` steps of linear growth, lr/warmup in
// step 0 and lr in step warmup - 1, then a decay that counts its steps from the end of the warm-up.
class Schedule {
 public:
  using Decay = std::variant<ConstantRate, StepDecay, CosineDecay>;

  Schedule(double base_lr, Decay decay, std::int64_t warmup)
      : base_lr_(base_lr), decay_(decay), warmup_(warmup) {}

  // `step`: attempted steps before this one, from 0.
  double at(std::int64_t step) const;
  // Steps in which the rate grows.
  std::int64_t warmup() const { return warmup_; }

 private:
  double base_lr_;
  Decay decay_;
  std::int64_t warmup_;  // steps
};

// "constant", "step:every=1000,factor=0.1" or "cosine:final=0.01", each with warmup=STEPS; factor
// is 0.1, final 0 and warmup 0 unless given. Throws `UsageError` naming --lr-schedule.
Schedule parse_schedule(const std::string& spec, double base_lr, std::int64_t total_steps);

}  // namespace thinwire
