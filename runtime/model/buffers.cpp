#include "runtime/model/buffers.h"

#include <torch/torch.h>

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

}  // namespace thinwire
