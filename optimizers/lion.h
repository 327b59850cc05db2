// Lion.
#pragma once

#include <string>
#include <vector>

#include "optimizers/rule.h"

namespace thinwire {

// The options and defaults of the paper; the learning rate comes with each step. Every weight moves
// by that rate whatever its gradient, so rates are three to ten times smaller than AdamW's, and
// decays as many times larger.
struct LionOptions {
  double beta1 = 0.9;       // of the momentum in the sign; from 0, below 1
  double beta2 = 0.99;      // of the momentum that is kept; from 0, below 1
  double weight_decay = 0;  // decoupled; a GroupRule may set another
};

// Algorithm 2 of Chen et al., "Symbolic Discovery of Optimization Algorithms" (2023):
//   u = sign(beta1 m + (1 - beta1) g);  w -= lr (u + weight_decay w);  m = beta2 m + (1 - beta2) g,
// where sign(0) = 0 and m = 0 before the first step.
// State: "exp_avg/<parameter>", which is m.
struct LionRule {
  using Options = LionOptions;

  static std::vector<std::string> words() { return {"lion"}; }
  static constexpr const char* keys = "beta1=X,beta2=X,weight_decay=X";

  static Options parse(ChoiceReader& spec, const OptimizerDefaults& defaults) {
    Options options;
    options.beta1 = spec.number("beta1", options.beta1, 0, 1);
    options.beta2 = spec.number("beta2", options.beta2, 0, 1);
    options.weight_decay = parse_weight_decay(spec, defaults);
    return options;
  }

  static void validate(const Options& options) {
    require_below_one("lion: beta1", options.beta1);
    require_below_one("lion: beta2", options.beta2);
    require_not_negative("lion: weight_decay", options.weight_decay);
  }

  static std::vector<std::string> state(const Options&) { return {"exp_avg"}; }
  using StateCounts = thinwire::StateCounts<1>;

  struct Step {
    double lr = 0;
    double gradient_scale = 1;
    double beta1 = 0.9;
    double beta2 = 0.99;
  };
  static Step step(const Options& options, const StepParameters& parameters) {
    Step result;
    result.lr = parameters.lr;
    result.gradient_scale = parameters.gradient_scale;
    result.beta1 = options.beta1;
    result.beta2 = options.beta2;
    return result;
  }

  template <typename T>
  struct Numbers {
    T scale;
    T weight_decay;
    T lr;
    T keep1, take1;  // beta1, 1 - beta1
    T keep2, take2;  // beta2, 1 - beta2
  };
  template <typename T>
  THINWIRE_ON_DEVICE static Numbers<T> numbers(const Step& step, const StepSlice& slice) {
    return {static_cast<T>(step.gradient_scale),
            static_cast<T>(slice.weight_decay),
            static_cast<T>(step.lr * slice.lr_scale),
            static_cast<T>(step.beta1),
            static_cast<T>(1 - step.beta1),
            static_cast<T>(step.beta2),
            static_cast<T>(1 - step.beta2)};
  }

  template <typename T>
  THINWIRE_ON_DEVICE static void move(const Numbers<T>& c, T gradient, T& weight, T& exp_avg) {
    const T g = c.scale * gradient;
    const T mixed = c.keep1 * exp_avg + c.take1 * g;
    const T u = static_cast<T>(mixed > 0) - static_cast<T>(mixed < 0);
    exp_avg = c.keep2 * exp_avg + c.take2 * g;
    weight -= c.lr * (u + c.weight_decay * weight);
  }
};

using Lion = Elementwise<LionRule>;

}  // namespace thinwire
