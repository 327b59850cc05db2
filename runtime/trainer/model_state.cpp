#include "runtime/trainer/model_state.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/torch.h>

#include <algorithm>

#include "runtime/base/error.h"
#include "runtime/base/hash.h"

namespace thinwire {

ModelBuffers::ModelBuffers(const torch::nn::Module& module) {
  for (const auto& item : module.named_buffers()) {
    names_.push_back(item.key());
    buffers_.push_back(item.value());
  }
}

std::vector<at::Tensor> ModelBuffers::mean(Communicator& communicator) const {
  const torch::NoGradGuard no_grad;
  std::vector<at::Tensor> values = clone();
  if (communicator.size() == 1) return values;
  for (at::Tensor& value : values) {
    if (value.is_floating_point()) {
      at::Tensor sum = value.cpu().to(at::kDouble).contiguous();
      communicator.all_reduce(sum, ReduceOp::sum)->wait();
      value.copy_(sum / communicator.size());
    } else {
      const at::Tensor flat = value.cpu().flatten();
      communicator.broadcast(flat.view(at::kByte), 0)->wait();
      value.copy_(flat.view(value.sizes()));
    }
  }
  return values;
}

void ModelBuffers::visit_mean(StateVisitor& visitor, const std::vector<at::Tensor>& values) const {
  for (std::size_t i = 0; i < names_.size(); ++i) {
    visitor.tensor({.name = names_[i], .kind = StateKind::replicated, .tensor = values[i]});
  }
}

void ModelBuffers::visit_own(StateVisitor& visitor) const {
  for (std::size_t i = 0; i < names_.size(); ++i) {
    visitor.tensor(
        {.name = "buffer/" + names_[i], .kind = StateKind::averaged, .tensor = buffers_[i]});
  }
}

std::vector<at::Tensor> ModelBuffers::clone() const {
  std::vector<at::Tensor> copies;
  for (const at::Tensor& buffer : buffers_) copies.push_back(buffer.detach().clone());
  return copies;
}

void ModelBuffers::assign(const std::vector<at::Tensor>& values) {
  const torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < buffers_.size(); ++i) buffers_[i].copy_(values[i]);
}

void ModelBuffers::take_back(const std::vector<at::Tensor>& before) {
  const torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    const bool is_statistic = names_[i].ends_with("running_mean") ||
                              names_[i].ends_with("running_var") ||
                              names_[i].ends_with("num_batches_tracked");
    if (!is_statistic && buffers_[i].isfinite().all().item<bool>()) continue;
    buffers_[i].copy_(before[i]);
  }
}

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

}  // namespace thinwire
