// Adam and AdamW.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "optimizers/rule.h"

namespace thinwire {

// torch::optim::Adam's options; the learning rate comes with each step.
struct AdamOptions {
  double beta1 = 0.9;    // from 0, below 1
  double beta2 = 0.999;  // from 0, below 1
  double eps = 1e-8;
  double weight_decay = 0;  // a GroupRule may set another; torch::optim::AdamW's default is 0.01
  bool amsgrad = false;
  // Adam adds weight_decay w to the gradient. AdamW, with decoupled decay, multiplies the weights
  // by 1 - lr weight_decay before the update.
  bool decoupled_weight_decay = false;
};

// The update of torch::optim::Adam and AdamW, with t = committed_step + 1:
//   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
//   w -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps),
// where amsgrad replaces v by its maximum so far. t counts for all slices: one that thaws late is
// corrected as if it had had zero gradients until then.
// State: "exp_avg/<parameter>", "exp_avg_sq/<parameter>", and with amsgrad
// "max_exp_avg_sq/<parameter>".
struct AdamRule {
  using Options = AdamOptions;

  static std::vector<std::string> words() { return {"adam", "adamw"}; }
  static constexpr const char* keys = "beta1=X,beta2=X,eps=X,weight_decay=X,amsgrad=0|1";

  static Options parse(ChoiceReader& spec, const OptimizerDefaults& defaults) {
    Options options;
    options.beta1 = spec.number("beta1", options.beta1, 0, 1);
    options.beta2 = spec.number("beta2", options.beta2, 0, 1);
    options.eps = spec.number("eps", options.eps, 0, 1);
    options.weight_decay = parse_weight_decay(spec, defaults);
    options.amsgrad = parse_switch(spec, "amsgrad");
    options.decoupled_weight_decay = spec.name() == "adamw";
    return options;
  }

  static void validate(const Options& options) {
    require_below_one("adam: beta1", options.beta1);
    require_below_one("adam: beta2", options.beta2);
    require_not_negative("adam: eps", options.eps);
    require_not_negative("adam: weight_decay", options.weight_decay);
  }

  static std::vector<std::string> state(const Options& options) {
    if (options.amsgrad) return {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
    return {"exp_avg", "exp_avg_sq"};
  }
  using StateCounts = thinwire::StateCounts<2, 3>;

  struct Step {
    double lr = 0;
    double gradient_scale = 1;
    double beta1 = 0.9;
    double beta2 = 0.999;
    double eps = 1e-8;
    double bias1 = 1;       // 1 - beta1^t
    double sqrt_bias2 = 1;  // sqrt(1 - beta2^t)
    bool decoupled_weight_decay = false;
  };
  static Step step(const Options& options, const StepParameters& parameters) {
    const double t = static_cast<double>(parameters.committed_step + 1);
    Step result;
    result.lr = parameters.lr;
    result.gradient_scale = parameters.gradient_scale;
    result.beta1 = options.beta1;
    result.beta2 = options.beta2;
    result.eps = options.eps;
    result.bias1 = 1 - std::pow(options.beta1, t);
    result.sqrt_bias2 = std::sqrt(1 - std::pow(options.beta2, t));
    result.decoupled_weight_decay = options.decoupled_weight_decay;
    return result;
  }

  template <typename T>
  struct Numbers {
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
  THINWIRE_ON_DEVICE static Numbers<T> numbers(const Step& step, const StepSlice& slice) {
    const double lr = step.lr * slice.lr_scale;
    const bool coupled = !step.decoupled_weight_decay;
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
  THINWIRE_ON_DEVICE static void move(const Numbers<T>& c, T gradient, T& weight, T& exp_avg,
                                      T& exp_avg_sq) {
    const T g = c.scale * gradient + c.coupled_decay * weight;
    const T m = c.keep1 * exp_avg + c.take1 * g;
    const T v = c.keep2 * exp_avg_sq + c.take2 * g * g;
    exp_avg = m;
    exp_avg_sq = v;
    weight = c.shrink * weight - c.step_size * m / (std::sqrt(v) / c.sqrt_bias2 + c.eps);
  }
  template <typename T>
  THINWIRE_ON_DEVICE static void move(const Numbers<T>& c, T gradient, T& weight, T& exp_avg,
                                      T& exp_avg_sq, T& max_exp_avg_sq) {
    const T g = c.scale * gradient + c.coupled_decay * weight;
    const T m = c.keep1 * exp_avg + c.take1 * g;
    const T v = c.keep2 * exp_avg_sq + c.take2 * g * g;
    const T highest = max_exp_avg_sq > v ? max_exp_avg_sq : v;
    exp_avg = m;
    exp_avg_sq = v;
    max_exp_avg_sq = highest;
    weight = c.shrink * weight - c.step_size * m / (std::sqrt(highest) / c.sqrt_bias2 + c.eps);
  }
};

using Adam = Elementwise<AdamRule>;

}  // namespace thinwire
