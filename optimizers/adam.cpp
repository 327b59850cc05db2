#include "optimizers/adam.h"

#include <fmt/format.h>

#include <cmath>

#include "runtime/base/error.h"

namespace thinwire {
namespace {

void check_beta(const char* name, double beta) {
  if (!(beta >= 0 && beta < 1)) {
    throw UsageError(fmt::format("adam: {} is {}; give a number from 0, below 1", name, beta));
  }
}

const AdamOptions& checked(const AdamOptions& options) {
  check_beta("beta1", options.beta1);
  check_beta("beta2", options.beta2);
  if (!(options.eps >= 0)) {
    throw UsageError(fmt::format("adam: eps is {}; give a number from 0", options.eps));
  }
  if (!(options.weight_decay >= 0)) {
    throw UsageError(
        fmt::format("adam: weight_decay is {}; give a number from 0", options.weight_decay));
  }
  return options;
}

// The numbers of one slice's step, in the type of its arithmetic.
template <typename T>
struct Coefficients {
  T scale;
  T coupled_decay;  // 0 where decay is decoupled
  T shrink;         // 1 where decay is coupled
  T keep1, take1;   // beta1, 1 - beta1
  T keep2, take2;   // beta2, 1 - beta2
  T sqrt_bias2;
  T eps;
  T step_size;
};

template <typename T>
Coefficients<T> coefficients(const AdamOptions& options, WeightDecay decay,
                             const ParameterGroup& group, const StepParameters& step) {
  const double t = static_cast<double>(step.committed_step + 1);
  const double lr = step.lr * group.lr_scale;
  const bool coupled = decay == WeightDecay::coupled;
  return {.scale = static_cast<T>(step.gradient_scale),
          .coupled_decay = static_cast<T>(coupled ? group.weight_decay : 0),
          .shrink = static_cast<T>(coupled ? 1 : 1 - lr * group.weight_decay),
          .keep1 = static_cast<T>(options.beta1),
          .take1 = static_cast<T>(1 - options.beta1),
          .keep2 = static_cast<T>(options.beta2),
          .take2 = static_cast<T>(1 - options.beta2),
          .sqrt_bias2 = static_cast<T>(std::sqrt(1 - std::pow(options.beta2, t))),
          .eps = static_cast<T>(options.eps),
          .step_size = static_cast<T>(lr / (1 - std::pow(options.beta1, t)))};
}

template <typename T>
void step_adam(const SliceView<T>& slice, Coefficients<T> c) {
  T* __restrict weights = slice.weights;
  T* __restrict exp_avg = slice.state[0];
  T* __restrict exp_avg_sq = slice.state[1];
  const T* __restrict gradient = slice.gradient;
  const std::int64_t numel = slice.numel;
  for (std::int64_t i = 0; i < numel; ++i) {
    const T g = c.scale * gradient[i] + c.coupled_decay * weights[i];
    const T m = c.keep1 * exp_avg[i] + c.take1 * g;
    const T v = c.keep2 * exp_avg_sq[i] + c.take2 * g * g;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    weights[i] = c.shrink * weights[i] - c.step_size * m / (std::sqrt(v) / c.sqrt_bias2 + c.eps);
  }
}

template <typename T>
void step_amsgrad(const SliceView<T>& slice, Coefficients<T> c) {
  T* __restrict weights = slice.weights;
  T* __restrict exp_avg = slice.state[0];
  T* __restrict exp_avg_sq = slice.state[1];
  T* __restrict max_exp_avg_sq = slice.state[2];
  const T* __restrict gradient = slice.gradient;
  const std::int64_t numel = slice.numel;
  for (std::int64_t i = 0; i < numel; ++i) {
    const T g = c.scale * gradient[i] + c.coupled_decay * weights[i];
    const T m = c.keep1 * exp_avg[i] + c.take1 * g;
    const T v = c.keep2 * exp_avg_sq[i] + c.take2 * g * g;
    const T highest = max_exp_avg_sq[i] > v ? max_exp_avg_sq[i] : v;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    max_exp_avg_sq[i] = highest;
    weights[i] =
        c.shrink * weights[i] - c.step_size * m / (std::sqrt(highest) / c.sqrt_bias2 + c.eps);
  }
}

std::vector<std::string> kinds(const AdamOptions& options) {
  if (options.amsgrad) return {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  return {"exp_avg", "exp_avg_sq"};
}

}  // namespace

Adam::Adam(std::span<const Bucket> buckets, const AdamOptions& options, WeightDecay decay,
           const GroupRules& rules)
    : options_(checked(options)),
      decay_(decay),
      state_(buckets, rules, options.weight_decay, kinds(options)) {}

StepPlan Adam::plan(std::int64_t) const {
  return {Quantity::gradient, Transmission::compressed};
}

void Adam::before_reduce(Bucket&) {}

void Adam::after_reduce(Bucket& bucket, const StepParameters& step) {
  state_.for_each_slice(bucket, [&]<typename T>(const SliceView<T>& slice) {
    const Coefficients<T> c = coefficients<T>(options_, decay_, slice.group, step);
    if (options_.amsgrad) {
      step_amsgrad(slice, c);
    } else {
      step_adam(slice, c);
    }
  });
}

void Adam::visit(StateVisitor& visitor) {
  state_.visit(visitor);
}

}  // namespace thinwire
