#include "optimizers/sgd.h"

#include <fmt/format.h>

#include "runtime/base/error.h"

namespace thinwire {
namespace {

const SgdOptions& checked(const SgdOptions& options) {
  if (!(options.momentum >= 0)) {
    throw UsageError(
        fmt::format("sgd: momentum is {}; give a number from 0 to 1", options.momentum));
  }
  if (!(options.weight_decay >= 0)) {
    throw UsageError(
        fmt::format("sgd: weight_decay is {}; give a number from 0", options.weight_decay));
  }
  if (options.nesterov && !(options.momentum > 0 && options.dampening == 0)) {
    throw UsageError(
        fmt::format("sgd: nesterov with momentum {} and dampening {}; give a momentum above 0 and "
                    "no dampening",
                    options.momentum, options.dampening));
  }
  return options;
}

// The numbers of one slice's step, in the type of its arithmetic.
template <typename T>
struct Coefficients {
  T scale;
  T weight_decay;
  T lr;
};

// The direction is `direct` d + `buffered` buf: (0, 1) is plain and (1, momentum) nesterov, so that
// the loop needs no branch.
template <typename T>
struct MomentumCoefficients {
  T keep;
  T take;
  T direct;
  T buffered;
};

template <typename T>
void step_plain(const SliceView<T>& slice, Coefficients<T> c) {
  T* __restrict weights = slice.weights;
  const T* __restrict gradient = slice.gradient;
  const std::int64_t numel = slice.numel;
  for (std::int64_t i = 0; i < numel; ++i) {
    weights[i] -= c.lr * (c.scale * gradient[i] + c.weight_decay * weights[i]);
  }
}

template <typename T>
void step_momentum(const SliceView<T>& slice, Coefficients<T> c, MomentumCoefficients<T> m) {
  T* __restrict weights = slice.weights;
  T* __restrict buffer = slice.state[0];
  const T* __restrict gradient = slice.gradient;
  const std::int64_t numel = slice.numel;
  for (std::int64_t i = 0; i < numel; ++i) {
    const T d = c.scale * gradient[i] + c.weight_decay * weights[i];
    const T next = m.keep * buffer[i] + m.take * d;
    buffer[i] = next;
    weights[i] -= c.lr * (m.direct * d + m.buffered * next);
  }
}

template <typename T>
MomentumCoefficients<T> momentum_coefficients(const SgdOptions& options,
                                              std::int64_t committed_step) {
  const T momentum = static_cast<T>(options.momentum);
  // The buffer is zero before the first step, so that buf = d only takes an undampened d.
  const T take = committed_step == 0 ? T{1} : static_cast<T>(1 - options.dampening);
  return options.nesterov ? MomentumCoefficients<T>{momentum, take, T{1}, momentum}
                          : MomentumCoefficients<T>{momentum, take, T{0}, T{1}};
}

}  // namespace

Sgd::Sgd(std::span<const Bucket> buckets, const SgdOptions& options, const GroupRules& rules)
    : options_(checked(options)),
      state_(buckets, rules, options.weight_decay,
             options.momentum > 0 ? std::vector<std::string>{"momentum"}
                                  : std::vector<std::string>{}) {}

StepPlan Sgd::plan(std::int64_t) const {
  return {Quantity::gradient, Transmission::compressed};
}

void Sgd::before_reduce(Bucket&) {}

void Sgd::after_reduce(Bucket& bucket, const StepParameters& step) {
  state_.for_each_slice(bucket, [&]<typename T>(const SliceView<T>& slice) {
    const Coefficients<T> c{static_cast<T>(step.gradient_scale),
                            static_cast<T>(slice.group.weight_decay),
                            static_cast<T>(step.lr * slice.group.lr_scale)};
    if (options_.momentum > 0) {
      step_momentum(slice, c, momentum_coefficients<T>(options_, step.committed_step));
    } else {
      step_plain(slice, c);
    }
  });
}

void Sgd::visit(StateVisitor& visitor) {
  state_.visit(visitor);
}

}  // namespace thinwire
