// Dropout without a generator.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <optional>

#include "runtime/layers/dropout_mask.h"

namespace thinwire {

// Dropout whose mask is a function of seed, step, rank, micro-batch and the layer's name in the
// model, so that a resumed run draws the masks that it would have drawn, threads and processes draw
// the same, and ranks draw different ones. libtorch's own takes them from a generator that all
// ranks of a process share.
//
// While training, each element is zero with `probability` and else scaled by 1 / (1 - probability),
// so that its expectation stays; in evaluation, and with probability 0, the input is passed on.
class PhiloxDropout : public torch::nn::Module {
 public:
  // `probability` in [0, 1).
  explicit PhiloxDropout(double probability);

  // Throws Bug where a mask is needed and no pass was begun. A layer that is used twice in a pass
  // draws two masks.
  at::Tensor forward(const at::Tensor& input);

  // Called by `begin_forward`.
  void begin(const ForwardPass& pass, std::uint64_t layer);

 private:
  double probability_;
  std::optional<ForwardPass> pass_;
  std::uint64_t layer_ = 0;
  std::int64_t uses_ = 0;  // in this pass
};

}  // namespace thinwire
