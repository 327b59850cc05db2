// The updates of optimizers whose momentum is exchanged. Its state is the same on every rank: each
// adds its own gradient to the common momentum and sends that, and what comes back is the next
// common momentum, with which it moves the weights.
#pragma once

#include <cmath>

#include "optimizers/rule.h"

namespace thinwire {

// What a rank sends: keep m + take g, in the place of its gradient. The tensor that it moves is the
// gradient itself.
struct OwnMomentumRule {
  using StateCounts = thinwire::StateCounts<1>;
  struct Step {
    double keep = 0.9;
    double take = 1;
  };
  template <typename T>
  struct Numbers {
    T keep, take;
  };
  template <typename T>
  THINWIRE_ON_DEVICE static Numbers<T> numbers(const Step& step, const StepSlice&) {
    return {static_cast<T>(step.keep), static_cast<T>(step.take)};
  }
  template <typename T>
  THINWIRE_ON_DEVICE static void move(const Numbers<T>& c, T, T& gradient, const T& momentum) {
    gradient = c.keep * momentum + c.take * gradient;
  }
};

// SGD with the common momentum m:
//   m = estimate + weight_decay w;  w -= lr scale m.
// Weight decay follows from weights that all ranks have, so it is not sent.
struct CommonSgdRule {
  using StateCounts = thinwire::StateCounts<1>;
  struct Step {
    double lr = 0;
    double scale = 1;  // of clipping
  };
  template <typename T>
  struct Numbers {
    T scale;
    T weight_decay;
    T lr;
  };
  template <typename T>
  THINWIRE_ON_DEVICE static Numbers<T> numbers(const Step& step, const StepSlice& slice) {
    return {static_cast<T>(step.scale), static_cast<T>(slice.weight_decay),
            static_cast<T>(step.lr * slice.lr_scale)};
  }
  template <typename T>
  THINWIRE_ON_DEVICE static void move(const Numbers<T>& c, T estimate, T& weight, T& momentum) {
    const T next = estimate + c.weight_decay * weight;
    momentum = next;
    weight -= c.lr * (c.scale * next);
  }
};

// Adam's steps after its variance was frozen.
struct FrozenAdamStep {
  double lr = 0;
  double scale = 1;  // of clipping
  double beta1 = 0.9;
  double eps = 1e-8;
  double bias1 = 1;  // 1 - beta1^t
  double bias2 = 1;  // 1 - beta2^T of the last step T before the freeze
  double refresh_keep = 0.9;
};
template <typename T>
struct FrozenAdamNumbers {
  T scale;
  T shrink;        // of decoupled weight decay
  T keep1, take1;  // beta1, 1 - beta1
  T keep2, take2;  // of a refresh
  T bias2;
  T sqrt_bias2;
  T eps;
  T step_size;
};
template <typename T>
THINWIRE_ON_DEVICE FrozenAdamNumbers<T> frozen_adam_numbers(const FrozenAdamStep& step,
                                                            const StepSlice& slice) {
  const double lr = step.lr * slice.lr_scale;
  return {static_cast<T>(step.scale),        static_cast<T>(1 - lr * slice.weight_decay),
          static_cast<T>(step.beta1),        static_cast<T>(1 - step.beta1),
          static_cast<T>(step.refresh_keep), static_cast<T>((1 - step.refresh_keep) * step.bias2),
          static_cast<T>(step.bias2),        static_cast<T>(std::sqrt(step.bias2)),
          static_cast<T>(step.eps),          static_cast<T>(lr / step.bias1)};
}

// The estimate is the common momentum:
//   m = estimate where v > 0, else 0;  w -= lr (scale m / (1 - beta1^t) / (sqrt(v_T) + eps) + wd
//   w),
// where v_T = v / (1 - beta2^T) is corrected as it was at the freeze. A weight whose gradients were
// all 0 until then has v = 0. Only decay moves it, as what is decoded for it is noise.
struct FrozenAdamRule {
  using StateCounts = thinwire::StateCounts<2>;
  struct Step : FrozenAdamStep {};  // a type of its own finds its kernel
  template <typename T>
  using Numbers = FrozenAdamNumbers<T>;
  template <typename T>
  THINWIRE_ON_DEVICE static Numbers<T> numbers(const Step& step, const StepSlice& slice) {
    return frozen_adam_numbers<T>(step, slice);
  }
  template <typename T>
  THINWIRE_ON_DEVICE static void move(const Numbers<T>& c, T estimate, T& weight, T& exp_avg,
                                      const T& exp_avg_sq) {
    const T v = exp_avg_sq;
    const T m = v > 0 ? estimate : T{0};
    exp_avg = m;
    weight =
        c.shrink * weight - c.step_size * (c.scale * m) / (std::sqrt(v) / c.sqrt_bias2 + c.eps);
  }
};

// The estimate is the mean gradient g, which also refreshes the variance:
//   m = beta1 m + (1 - beta1) g;  v_T = keep v_T + (1 - keep) g^2, or g^2 where v = 0,
// and the weights move as above. v is kept as it was before its correction, v_T (1 - beta2^T).
struct RefreshAdamRule {
  using StateCounts = thinwire::StateCounts<2>;
  struct Step : FrozenAdamStep {};  // a type of its own finds its kernel
  template <typename T>
  using Numbers = FrozenAdamNumbers<T>;
  template <typename T>
  THINWIRE_ON_DEVICE static Numbers<T> numbers(const Step& step, const StepSlice& slice) {
    return frozen_adam_numbers<T>(step, slice);
  }
  template <typename T>
  THINWIRE_ON_DEVICE static void move(const Numbers<T>& c, T estimate, T& weight, T& exp_avg,
                                      T& exp_avg_sq) {
    const T g = c.scale * estimate;
    const T m = c.keep1 * exp_avg + c.take1 * g;
    const T old = exp_avg_sq;
    const T v = old > 0 ? c.keep2 * old + c.take2 * g * g : c.bias2 * g * g;
    exp_avg = m;
    exp_avg_sq = v;
    weight = c.shrink * weight - c.step_size * m / (std::sqrt(v) / c.sqrt_bias2 + c.eps);
  }
};

}  // namespace thinwire
