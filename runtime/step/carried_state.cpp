#include "runtime/step/carried_state.h"

#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/text.h"

namespace thinwire {
namespace {

// "residual/fc.weight": what it is, and of which parameter.
std::pair<std::string, std::string> split(const std::string& name) {
  const auto slash = name.find('/');
  check(slash != std::string::npos, "state is called by its kind and its parameter");
  return {name.substr(0, slash), name.substr(slash + 1)};
}

// Before the kinds of a reducer that has gradients alone (ByQuantityReducer).
constexpr std::string_view kForGradients = "gradient_";

// The state that a linear map of the gradient maps as well. Moments of an optimizer are not.
bool is_of_gradient(const std::string& kind) {
  static const std::set<std::string> kKinds = {"residual",         "owner_residual",     "tracker",
                                               "mean_tracker",     "estimate_of_owners", "estimate",
                                               "averaged_gradient"};
  return kKinds.contains(kind.starts_with(kForGradients) ? kind.substr(kForGradients.size())
                                                         : kind);
}

// Calls functions with everything that is shown.
class ForEach final : public StateVisitor {
 public:
  using OfTensor = std::function<void(const StateEntry&)>;
  using OfCounter = std::function<void(const std::string&, std::int64_t&)>;

  ForEach(OfTensor of_tensor, OfCounter of_counter)
      : of_tensor_(std::move(of_tensor)), of_counter_(std::move(of_counter)) {}
  void tensor(const StateEntry& entry) override { of_tensor_(entry); }
  void counter(const std::string& name, std::int64_t& value) override { of_counter_(name, value); }

 private:
  OfTensor of_tensor_;
  OfCounter of_counter_;
};

// What a projection gives for one parameter, in host memory.
at::Tensor checked(const std::string& name, const at::Tensor& tensor,
                   const std::vector<Parameter>& added) {
  const auto place = std::ranges::find(added, name, &Parameter::name);
  if (place == added.end()) {
    throw UsageError(
        fmt::format("the projection gives a residual of '{}', which is not among the parameters "
                    "that are added; use their names",
                    printable(name)));
  }
  if (!tensor.defined() || tensor.sizes() != place->tensor.sizes()) {
    throw UsageError(fmt::format(
        "the projection gives a residual of {} that is not of its shape {}; give it that shape",
        name, fmt::join(place->tensor.sizes(), " x ")));
  }
  return tensor.detach().cpu().contiguous();
}

}  // namespace

std::vector<Parameter> replaced(const std::vector<Parameter>& before,
                                const Replacement& replacement) {
  if (replacement.removed.empty()) {
    throw UsageError("a replacement removes no parameter; name those whose place others take");
  }
  std::vector<Parameter> now;
  std::set<std::string> missing(replacement.removed.begin(), replacement.removed.end());
  bool placed = false;
  for (const Parameter& parameter : before) {
    if (missing.erase(parameter.name) == 0) {
      now.push_back(parameter);
      continue;
    }
    if (std::exchange(placed, true)) continue;
    now.insert(now.end(), replacement.added.begin(), replacement.added.end());
  }
  if (!missing.empty()) {
    throw UsageError(
        fmt::format("there is no parameter '{}' to replace; use a name of those that are trained",
                    printable(*missing.begin())));
  }
  return now;
}

CarriedState::CarriedState(const Show& show, Communicator& communicator) {
  const c10::NoGradGuard no_grad;
  // What this rank has of parts, by name.
  std::map<std::string, std::vector<StateEntry>> parts;
  ForEach collect(
      [&](const StateEntry& entry) {
        if (entry.kind == StateKind::ranged) {
          parts[entry.name].push_back(entry);
        } else {
          const auto [kind, name] = split(entry.name);
          kinds_[kind][name] = entry.tensor.detach().cpu().clone();
        }
      },
      [&](const std::string& name, std::int64_t& value) { counters_[name] = value; });
  show(collect);
  // No rank has parts of all parameters.
  std::string mine;
  for (const auto& [name, entries] : parts) mine += name + "\n";
  std::set<std::string> names;
  for (const std::string& lines : all_gather_text(communicator, mine)) {
    for (std::size_t begin = 0; begin < lines.size();) {
      const std::size_t end = lines.find('\n', begin);
      names.insert(lines.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  for (const std::string& name : names) {
    const auto [kind, parameter] = split(name);
    // Who averages a part for others has a residual of the whole as well.
    const std::string residual = kind.starts_with(kForGradients) ? "gradient_residual" : "residual";
    at::Tensor whole = at::zeros_like(kinds_.at(residual).at(parameter));
    for (const StateEntry& entry : parts[name]) {
      whole.view({-1}).narrow(0, entry.begin, entry.end - entry.begin).copy_(entry.tensor);
    }
    // The ranks' parts are apart from each other, so the sum is exact.
    communicator.all_reduce(whole, ReduceOp::sum)->wait();
    kinds_[kind][parameter] = whole;
  }
}

std::vector<std::string> CarriedState::replace(const Replacement& replacement) {
  const c10::NoGradGuard no_grad;
  std::map<std::string, double> norms;  // of residuals, by parameter
  for (auto& [kind, tensors] : kinds_) {
    OfKind removed;
    for (const std::string& name : replacement.removed) {
      if (auto found = tensors.extract(name)) removed.insert(std::move(found));
    }
    if (kind == "residual" || kind == "gradient_residual") {
      for (const auto& [name, tensor] : removed) {
        norms[name] = std::hypot(norms[name],
                                 std::sqrt(tensor.to(at::kDouble).square().sum().item<double>()));
      }
    }
    if (removed.empty() || !replacement.project || !is_of_gradient(kind)) continue;
    for (const auto& [name, tensor] : replacement.project(removed)) {
      tensors[name] = checked(name, tensor, replacement.added);
    }
  }
  std::vector<std::string> added;
  for (const Parameter& parameter : replacement.added) added.push_back(parameter.name);
  std::vector<std::string> sentences;
  for (const std::string& name : replacement.removed) {
    std::string fate = "it had no residual";
    if (norms.contains(name)) {
      fate = fmt::format("its residual of norm {:.3g} is {}", norms.at(name),
                         replacement.project ? "projected" : "dropped");
    }
    sentences.push_back(fmt::format("{} gives way to {}: {}", name, fmt::join(added, ", "), fate));
  }
  return sentences;
}

void CarriedState::fill(const Show& show) const {
  const c10::NoGradGuard no_grad;
  ForEach fill(
      [&](const StateEntry& entry) {
        const auto [kind, name] = split(entry.name);
        const auto of_kind = kinds_.find(kind);
        if (of_kind == kinds_.end() || !of_kind->second.contains(name)) return;  // as it was built
        const at::Tensor& from = of_kind->second.at(name);
        if (entry.kind == StateKind::ranged) {
          entry.tensor.copy_(from.reshape({-1}).narrow(0, entry.begin, entry.end - entry.begin));
        } else {
          entry.tensor.copy_(from);
        }
      },
      [&](const std::string& name, std::int64_t& value) {
        if (const auto found = counters_.find(name); found != counters_.end())
          value = found->second;
      });
  show(fill);
}

}  // namespace thinwire
