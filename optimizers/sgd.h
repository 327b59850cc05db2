// Stochastic gradient descent with momentum.
#pragma once

#include <string>
#include <vector>

#include "optimizers/rule.h"

namespace thinwire {

// torch::optim::SGD's options; the learning rate comes with each step.
struct SgdOptions {
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;  // a GroupRule may set another
  bool nesterov = false;    // needs momentum > 0 and dampening 0
};

// The update of torch::optim::SGD:
//   d = scale g + weight_decay w;  buf = momentum buf + (1 - dampening) d;
//   w -= lr (d + momentum buf) with nesterov, w -= lr buf with momentum, w -= lr d without.
// In the first step buf = d, undampened. The first step is that of committed_step 0, which a
// checkpoint restores, so nothing else need be saved for it. A slice that thaws later begins with
// buf = 0.
// State: "momentum/<parameter>" if momentum > 0.
struct SgdRule {
  using Options = SgdOptions;

  static std::vector<std::string> words() { return {"sgd"}; }
  static constexpr const char* keys = "momentum=X,dampening=X,weight_decay=X,nesterov=0|1";

  static Options parse(ChoiceReader& spec, const OptimizerDefaults& defaults) {
    Options options;
    options.momentum = spec.number("momentum", defaults.momentum, 0, 1);
    options.dampening = spec.number("dampening", options.dampening, 0, 1);
    options.weight_decay = parse_weight_decay(spec, defaults);
    options.nesterov = parse_switch(spec, "nesterov");
    return options;
  }

  static void validate(const Options& options) {
    require_option(options.momentum >= 0, "sgd: momentum", options.momentum,
                   "a number from 0 to 1");
    require_not_negative("sgd: weight_decay", options.weight_decay);
    if (!options.nesterov) return;
    require_option(options.momentum > 0, "sgd with nesterov: momentum", options.momentum,
                   "a momentum above 0");
    require_option(options.dampening == 0, "sgd with nesterov: dampening", options.dampening,
                   "no dampening");
  }

  static std::vector<std::string> state(const Options& options) {
    if (options.momentum > 0) return {"momentum"};
    return {};
  }
  using StateCounts = thinwire::StateCounts<0, 1>;

  struct Step {
    double lr = 0;
    double gradient_scale = 1;
    // buf = momentum buf + take d; the direction is `direct` d + `buffered` buf. So nesterov is
    // (1, momentum) and plain momentum (0, 1), and the loop needs no branch.
    double momentum = 0;
    double take = 1;
    double direct = 0;
    double buffered = 1;
  };
  static Step step(const Options& options, const StepParameters& parameters) {
    Step result;
    result.lr = parameters.lr;
    result.gradient_scale = parameters.gradient_scale;
    result.momentum = options.momentum;
    // The buffer is zero before the first step, so that buf = d only takes an undampened d.
    result.take = parameters.committed_step == 0 ? 1 : 1 - options.dampening;
    result.direct = options.nesterov ? 1 : 0;
    result.buffered = options.nesterov ? options.momentum : 1;
    return result;
  }

  template <typename T>
  struct Numbers {
    T scale;
    T weight_decay;
    T lr;
    T keep;
    T take;
    T direct;
    T buffered;
  };
  template <typename T>
  THINWIRE_ON_DEVICE static Numbers<T> numbers(const Step& step, const StepSlice& slice) {
    return {static_cast<T>(step.gradient_scale),
            static_cast<T>(slice.weight_decay),
            static_cast<T>(step.lr * slice.lr_scale),
            static_cast<T>(step.momentum),
            static_cast<T>(step.take),
            static_cast<T>(step.direct),
            static_cast<T>(step.buffered)};
  }

  template <typename T>
  THINWIRE_ON_DEVICE static void move(const Numbers<T>& c, T gradient, T& weight) {
    weight -= c.lr * (c.scale * gradient + c.weight_decay * weight);
  }
  template <typename T>
  THINWIRE_ON_DEVICE static void move(const Numbers<T>& c, T gradient, T& weight, T& momentum) {
    const T d = c.scale * gradient + c.weight_decay * weight;
    const T next = c.keep * momentum + c.take * d;
    momentum = next;
    weight -= c.lr * (c.direct * d + c.buffered * next);
  }
};

using Sgd = Elementwise<SgdRule>;

}  // namespace thinwire
