// A module's parameters and buffers as state of a run.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "runtime/base/state.h"
#include "runtime/buckets/gradient_buckets.h"
#include "runtime/trainer/model.h"

namespace thinwire {

// Buffers (running statistics of norms) are each rank's own: they are updated from the rank's own
// samples and never sent while training. Evaluation and the checkpoint's model file use their mean
// over ranks (of integers: rank 0's); each rank's own are in its own file of the checkpoint.
class ModelBuffers {
 public:
  ModelBuffers() = default;  // none
  explicit ModelBuffers(const torch::nn::Module& module);

  const std::vector<std::string>& names() const { return names_; }
  const std::vector<at::Tensor>& tensors() const { return buffers_; }

  // Collective: the mean over ranks of every buffer, as new tensors.
  std::vector<at::Tensor> mean(Communicator& communicator) const;
  // Shows `values`, one per buffer, as replicated state under the buffers' plain names.
  void visit_mean(StateVisitor& visitor, const std::vector<at::Tensor>& values) const;
  // Shows this rank's own, as "buffer/<name>".
  void visit_own(StateVisitor& visitor) const;

  std::vector<at::Tensor> clone() const;
  void assign(const std::vector<at::Tensor>& values);
  // After a step that was rolled back, takes back what its forward pass has put into buffers, from
  // their values before it: running statistics of norms, and whatever is no longer finite. Other
  // buffers are the user's, who may have changed them meanwhile.
  void take_back(const std::vector<at::Tensor>& before);

 private:
  std::vector<std::string> names_;
  std::vector<at::Tensor> buffers_;
};

// Parameters and buffers go to `device`; before they are laid out into buckets.
void move_to(torch::nn::Module& module, at::Device device);

// The hash of every parameter's bytes, in the order given.
std::uint64_t hash_parameters(const std::vector<Parameter>& parameters);

// Collective: throws `RanksDisagree`, naming the first parameter that differs and the ranks that
// differ from most of the others, on every rank.
void require_equal_replicas(Communicator& communicator, const std::vector<Parameter>& parameters);

}  // namespace thinwire
