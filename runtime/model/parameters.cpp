#include "runtime/model/parameters.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/torch.h>

#include <algorithm>
#include <set>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"

namespace thinwire {
namespace {

std::uint64_t hash_parameter(const Parameter& parameter, std::uint64_t seed) {
  const at::Tensor bytes = parameter.tensor.detach().cpu().contiguous();
  return hash64(bytes.const_data_ptr(), bytes.nbytes(), seed);
}

// Where the value that occurs most often occurs first; of equally frequent ones the first.
std::size_t most_frequent(const std::vector<std::string>& values) {
  const auto frequency = [&](const std::string& value) {
    return std::count(values.begin(), values.end(), value);
  };
  const auto place =
      std::max_element(values.begin(), values.end(),
                       [&](const auto& a, const auto& b) { return frequency(a) < frequency(b); });
  return static_cast<std::size_t>(place - values.begin());
}

}  // namespace

std::vector<Parameter> parameters_of(const torch::nn::Module& module) {
  std::vector<Parameter> parameters;
  std::set<const void*> seen;
  for (const auto& item : module.named_parameters()) {
    if (!seen.insert(item.value().unsafeGetTensorImpl()).second) continue;
    parameters.push_back({item.key(), item.value()});
  }
  return parameters;
}

std::int64_t values_of(const torch::nn::Module& module) {
  std::int64_t values = 0;
  for (const Parameter& parameter : parameters_of(module)) values += parameter.tensor.numel();
  return values;
}

void visit_parameters(const std::vector<Parameter>& parameters, StateVisitor& visitor) {
  for (const auto& parameter : parameters) {
    visitor.tensor({.name = parameter.name,
                    .kind = StateKind::replicated,
                    .tensor = parameter.tensor.detach()});
  }
}

void move_to(torch::nn::Module& module, at::Device device) {
  module.to(device);
}

std::uint64_t hash_parameters(const std::vector<Parameter>& parameters) {
  std::uint64_t hash = 0;
  for (const auto& parameter : parameters) hash = hash_parameter(parameter, hash);
  return hash;
}

void require_equal_replicas(Communicator& communicator, const std::vector<Parameter>& parameters) {
  const std::uint64_t mine = hash_parameters(parameters);
  const auto hash = static_cast<std::int64_t>(mine);
  // The largest complement tells the smallest value: equal on all ranks or not, in one message.
  const auto largest = all_reduce_max(communicator, {hash, ~hash});
  if (largest[0] == ~largest[1]) return;

  std::string hashes;
  for (const auto& parameter : parameters) hashes += hex64(hash_parameter(parameter, 0));
  const auto ranks = all_gather_text(communicator, hashes);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    std::vector<std::string> values;
    for (const std::string& rank : ranks) values.push_back(rank.substr(16 * i, 16));
    const std::size_t usual = most_frequent(values);
    std::vector<std::size_t> different;
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      if (values[rank] != values[usual]) different.push_back(rank);
    }
    if (different.empty()) continue;
    throw RanksDisagree(fmt::format(
        "replicas differ: parameter {} on rank {} is not that of rank {}; go back to the last "
        "checkpoint and check the machines of these ranks",
        parameters[i].name, fmt::join(different, ", "), usual));
  }
}

void broadcast_tensors(Communicator& communicator, const std::vector<at::Tensor>& tensors,
                       int root) {
  const torch::NoGradGuard no_grad;
  for (const at::Tensor& tensor : tensors) {
    // As bytes: any dtype and any dense layout travels.
    at::Tensor flat = tensor.detach().cpu().contiguous().flatten();
    at::Tensor bytes = flat.view(at::kByte);
    communicator.broadcast(bytes, root)->wait();
    tensor.detach().copy_(flat.view(tensor.sizes()));
  }
}

}  // namespace thinwire
