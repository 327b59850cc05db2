#include "examples/models/initialize.h"

#include <torch/torch.h>

#include <cmath>
#include <numbers>
#include <string>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/base/philox.h"
#include "examples/models/gpt.h"

namespace thinwire {
namespace {

double bound_of(const at::Tensor& weight) {
  const std::int64_t fan_in = weight.numel() / weight.size(0);
  return 1 / std::sqrt(static_cast<double>(fan_in));
}

void fill_uniform(at::Tensor& parameter, double bound, const Philox& draws) {
  at::Tensor values = at::empty(parameter.sizes(), at::kDouble);
  double* value = values.mutable_data_ptr<double>();
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    value[i] = bound * (2 * draws.uniform(static_cast<std::uint64_t>(i)) - 1);
  }
  parameter.copy_(values);
}

// Box and Muller's way from two uniform draws to a normal one.
void fill_normal(at::Tensor& parameter, double deviation, const Philox& draws) {
  at::Tensor values = at::empty(parameter.sizes(), at::kDouble);
  double* value = values.mutable_data_ptr<double>();
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    const auto draw = 2 * static_cast<std::uint64_t>(i);
    const double radius = std::sqrt(-2 * std::log(1 - draws.uniform(draw)));
    value[i] = deviation * radius * std::cos(2 * std::numbers::pi * draws.uniform(draw + 1));
  }
  parameter.copy_(values);
}

double gpt_deviation(const Gpt& gpt, const std::string& name) {
  constexpr double kDeviation = .02;
  if (!name.ends_with("_proj.weight")) return kDeviation;
  return kDeviation / std::sqrt(2 * static_cast<double>(gpt.options().layers));
}

}  // namespace

void initialize_parameters(torch::nn::Module& module, std::uint64_t seed) {
  const torch::NoGradGuard no_grad;
  auto parameters = module.named_parameters();
  const auto* gpt = dynamic_cast<const Gpt*>(&module);
  for (auto& item : parameters) {
    const std::string& name = item.key();
    at::Tensor& parameter = item.value();
    const Philox draws(seed, PhiloxStream::initialization, hash64(name));
    const std::size_t leaf = name.rfind('.') + 1;  // 0 for a parameter of the module itself
    const bool is_bias = name.substr(leaf) == "bias";
    const at::Tensor* weight = parameters.find(name.substr(0, leaf) + "weight");

    if (gpt != nullptr && parameter.dim() >= 2) {
      fill_normal(parameter, gpt_deviation(*gpt, name), draws);
    } else if (parameter.dim() >= 2) {
      fill_uniform(parameter, bound_of(parameter), draws);
    } else if (gpt == nullptr && is_bias && weight != nullptr && weight->dim() >= 2) {
      fill_uniform(parameter, bound_of(*weight), draws);
    } else {
      check(is_bias || weight == &parameter, "a rule to initialise '" + name + "'");
      parameter.fill_(is_bias ? 0 : 1);
    }
  }
}

}  // namespace thinwire
