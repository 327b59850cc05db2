#include "runtime/layers/philox_dropout.h"

#include <torch/torch.h>

#include <array>
#include <string>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"

namespace thinwire {
namespace {

void begin_in(torch::nn::Module& module, const std::string& name, const ForwardPass& pass) {
  if (auto* dropout = dynamic_cast<PhiloxDropout*>(&module)) dropout->begin(pass, hash64(name));
  for (const auto& child : module.named_children()) {
    begin_in(*child.value(), name + "." + child.key(), pass);
  }
}

}  // namespace

void begin_forward(torch::nn::Module& module, const ForwardPass& pass) {
  begin_in(module, "", pass);
}

PhiloxDropout::PhiloxDropout(double probability) : probability_(probability) {
  check(probability >= 0 && probability < 1, "a dropout probability in [0, 1)");
}

void PhiloxDropout::begin(const ForwardPass& pass, std::uint64_t layer) {
  pass_ = pass;
  layer_ = layer;
  uses_ = 0;
}

at::Tensor PhiloxDropout::forward(const at::Tensor& input) {
  if (!is_training() || probability_ == 0) return input;
  check(pass_.has_value(), "begin_forward comes before a forward pass with dropout");
  const std::array<std::uint64_t, 5> place{
      layer_, static_cast<std::uint64_t>(pass_->step), static_cast<std::uint64_t>(pass_->rank),
      static_cast<std::uint64_t>(pass_->micro_batch), static_cast<std::uint64_t>(uses_++)};
  const std::uint64_t stream = hash64(place.data(), sizeof(place));
  return input * dropout_mask(input, probability_, pass_->seed, stream);
}

}  // namespace thinwire
