#include "runtime/step/carried_state.h"

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>
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

// The state that a linear map of the gradient maps as well. Moments of an optimizer are not.
bool is_of_gradient(const std::string& kind) {
  static const std::set<std::string> kKinds = {"residual",         "owner_residual",     "tracker",
                                               "mean_tracker",     "estimate_of_owners", "estimate",
                                               "averaged_gradient"};
  return kKinds.contains(kind);
}

// Calls a function with everything that is shown.
class ForEach final : public StateVisitor {
 public:
  explicit ForEach(std::function<void(const StateEntry&)> body) : body_(std::move(body)) {}
  void tensor(const StateEntry& entry) override { body_(entry); }
  void counter(const std::string&, std::int64_t&) override {}

 private:
  std::function<void(const StateEntry&)> body_;
};

double squared_norm(const at::Tensor& tensor) {
  return tensor.to(at::kDouble).square().sum().item<double>();
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
  ForEach collect([&](const StateEntry& entry) {
    if (entry.kind == StateKind::ranged) {
      parts[entry.name].push_back(entry);
    } else {
      const auto [kind, name] = split(entry.name);
      kinds_[kind][name] = entry.tensor.detach().cpu().clone();
    }
  });
  show(collect);
  // "end name" of each, as no rank knows of all.
  std::string mine;
  for (const auto& [name, entries] : parts) {
    std::int64_t end = 0;
    for (const StateEntry& entry : entries) end = std::max(end, entry.end);
    mine += fmt::format("{} {} {}\n", end, static_cast<int>(entries.front().tensor.scalar_type()),
                        name);
  }
  std::map<std::string, std::pair<std::int64_t, at::ScalarType>> known;
  for (const std::string& lines : all_gather_text(communicator, mine)) {
    for (std::size_t begin = 0; begin < lines.size();) {
      const std::size_t end = lines.find('\n', begin);
      const std::string line = lines.substr(begin, end - begin);
      begin = end + 1;
      const std::size_t first = line.find(' ');
      const std::size_t second = line.find(' ', first + 1);
      auto& [numel, dtype] = known[line.substr(second + 1)];
      numel = std::max<std::int64_t>(numel, std::stoll(line));
      dtype = static_cast<at::ScalarType>(std::stoi(line.substr(first + 1)));
    }
  }
  for (const auto& [name, what] : known) {
    at::Tensor whole = at::zeros({what.first}, at::TensorOptions().dtype(what.second));
    for (const StateEntry& entry : parts[name]) {
      whole.narrow(0, entry.begin, entry.end - entry.begin).copy_(entry.tensor);
    }
    // The ranks' parts are apart from each other, so the sum is exact.
    communicator.all_reduce(whole, ReduceOp::sum)->wait();
    const auto [kind, parameter] = split(name);
    kinds_[kind][parameter] = whole;
  }
}

std::vector<std::string> CarriedState::fill(const Show& show, const Replacement& replacement) {
  const c10::NoGradGuard no_grad;
  // In the shapes of the parameters, which what owners have lacks.
  const auto shaped_like = [&](const at::Tensor& tensor, const std::string& name) {
    const auto residual = kinds_["residual"].find(name);
    if (residual == kinds_["residual"].end()) return tensor;
    at::Tensor whole = at::zeros({residual->second.numel()}, tensor.options());
    whole.narrow(0, 0, tensor.numel()).copy_(tensor.flatten());
    return whole.view(residual->second.sizes());
  };
  std::map<std::string, double> dropped;  // norms of residuals, squared, by parameter
  for (auto& [kind, tensors] : kinds_) {
    OfKind removed;
    for (const std::string& name : replacement.removed) {
      const auto found = tensors.find(name);
      if (found == tensors.end()) continue;
      if (kind == "residual") dropped[name] = squared_norm(found->second);
      removed[name] = shaped_like(found->second, name);
      tensors.erase(found);
    }
    if (removed.empty() || !replacement.project || !is_of_gradient(kind)) continue;
    for (const auto& [name, tensor] : replacement.project(removed)) {
      tensors[name] = tensor.detach().cpu().contiguous();
    }
  }
  ForEach fill([&](const StateEntry& entry) {
    const auto [kind, name] = split(entry.name);
    const auto found = kinds_[kind].find(name);
    if (found == kinds_[kind].end()) return;  // as it was built
    at::Tensor from = found->second;
    if (entry.kind == StateKind::ranged) {
      from = from.flatten();
      const std::int64_t there = std::min(entry.end, from.numel()) - entry.begin;
      entry.tensor.zero_();
      if (there > 0) entry.tensor.narrow(0, 0, there).copy_(from.narrow(0, entry.begin, there));
      return;
    }
    if (from.sizes() != entry.tensor.sizes()) {
      throw UsageError(fmt::format(
          "the replacement gives {} the shape {}, but it has {}; project to the shapes of the "
          "parameters",
          entry.name, fmt::join(from.sizes(), " x "), fmt::join(entry.tensor.sizes(), " x ")));
    }
    entry.tensor.copy_(from);
  });
  show(fill);
  std::vector<std::string> names;
  for (const Parameter& parameter : replacement.added) names.push_back(parameter.name);
  std::vector<std::string> sentences;
  for (const std::string& name : replacement.removed) {
    const auto found = dropped.find(name);
    std::string fate = "it had no residual";
    if (found != dropped.end()) {
      fate = fmt::format("its residual of norm {:.3g} is {}", std::sqrt(found->second),
                         replacement.project ? "projected" : "dropped");
    }
    sentences.push_back(fmt::format("{} gives way to {}: {}", name, fmt::join(names, ", "), fate));
  }
  return sentences;
}

}  // namespace thinwire
