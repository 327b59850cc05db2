// The arithmetic of the optimizers, element by element, and of the norm, block by block. The host's
// loops and the GPU's kernels are made of the same functions, so that they give the same bits.
#pragma once

#include <cmath>

#include "collectives/compression/kernels/warp.h"
#include "optimizers/kernels/kernels.h"

namespace thinwire::bodies {

// The numbers of one slice's SGD step, in the type of its arithmetic.
template <typename T>
struct SgdNumbers {
  T scale;
  T weight_decay;
  T lr;
  T keep;
  T take;
  T direct;
  T buffered;
};

template <typename T>
THINWIRE_ON_DEVICE SgdNumbers<T> sgd_numbers(const SgdStep& step, const StepSlice& slice) {
  return {static_cast<T>(step.gradient_scale),
          static_cast<T>(slice.weight_decay),
          static_cast<T>(step.lr * slice.lr_scale),
          static_cast<T>(step.momentum),
          static_cast<T>(step.take),
          static_cast<T>(step.direct),
          static_cast<T>(step.buffered)};
}

template <typename T>
THINWIRE_ON_DEVICE void sgd_plain(T& weight, T gradient, const SgdNumbers<T>& c) {
  weight -= c.lr * (c.scale * gradient + c.weight_decay * weight);
}

// (0, 1) as `direct` and `buffered` is plain momentum and (1, momentum) nesterov, so that a loop
// needs no branch.
template <typename T>
THINWIRE_ON_DEVICE void sgd_momentum(T& weight, T& momentum, T gradient, const SgdNumbers<T>& c) {
  const T d = c.scale * gradient + c.weight_decay * weight;
  const T next = c.keep * momentum + c.take * d;
  momentum = next;
  weight -= c.lr * (c.direct * d + c.buffered * next);
}

// The numbers of one slice's Adam step, in the type of its arithmetic.
template <typename T>
struct AdamNumbers {
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
THINWIRE_ON_DEVICE AdamNumbers<T> adam_numbers(const AdamStep& step, const StepSlice& slice) {
  const double lr = step.lr * slice.lr_scale;
  const bool coupled = step.decay == WeightDecay::coupled;
  return {static_cast<T>(step.gradient_scale),
          static_cast<T>(coupled ? slice.weight_decay : 0),
          static_cast<T>(coupled ? 1 : 1 - lr * slice.weight_decay),
          static_cast<T>(step.beta1),
          static_cast<T>(1 - step.beta1),
          static_cast<T>(step.beta2),
          static_cast<T>(1 - step.beta2),
          static_cast<T>(step.sqrt_bias2),
          static_cast<T>(step.eps),
          static_cast<T>(lr / step.bias1)};
}

template <typename T>
THINWIRE_ON_DEVICE void adam_plain(T& weight, T& exp_avg, T& exp_avg_sq, T gradient,
                                   const AdamNumbers<T>& c) {
  const T g = c.scale * gradient + c.coupled_decay * weight;
  const T m = c.keep1 * exp_avg + c.take1 * g;
  const T v = c.keep2 * exp_avg_sq + c.take2 * g * g;
  exp_avg = m;
  exp_avg_sq = v;
  weight = c.shrink * weight - c.step_size * m / (std::sqrt(v) / c.sqrt_bias2 + c.eps);
}

template <typename T>
THINWIRE_ON_DEVICE void adam_amsgrad(T& weight, T& exp_avg, T& exp_avg_sq, T& max_exp_avg_sq,
                                     T gradient, const AdamNumbers<T>& c) {
  const T g = c.scale * gradient + c.coupled_decay * weight;
  const T m = c.keep1 * exp_avg + c.take1 * g;
  const T v = c.keep2 * exp_avg_sq + c.take2 * g * g;
  const T highest = max_exp_avg_sq > v ? max_exp_avg_sq : v;
  exp_avg = m;
  exp_avg_sq = v;
  max_exp_avg_sq = highest;
  weight = c.shrink * weight - c.step_size * m / (std::sqrt(highest) / c.sqrt_bias2 + c.eps);
}

template <typename Warp, typename T>
THINWIRE_ON_DEVICE double squared_sum(const T* values, std::int32_t count) {
  return lane_sum<Warp, double>(count, [&](std::int64_t i) {
    const double value = static_cast<double>(values[i]);
    return value * value;
  });
}

template <typename Warp>
THINWIRE_ON_DEVICE double sum_of_blocks(const double* sums, std::int64_t count) {
  return lane_sum<Warp, double>(count, [&](std::int64_t b) { return sums[b]; });
}

}  // namespace thinwire::bodies
