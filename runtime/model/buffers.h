// A module's buffers as state of a run.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "collectives/base/state.h"
#include "collectives/communicator.h"
#include "runtime/model/model.h"

namespace thinwire {

// Buffers (running statistics of norms) are each rank's own: they are updated from the rank's own
// samples and never sent while training. Evaluation and the checkpoint's model file use their mean
// over ranks, and rank 0's where they are integers. Each rank's own buffers are in its own file of
// the checkpoint.
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
  // Shows this rank's own buffers, as "buffer/<name>".
  void visit_own(StateVisitor& visitor) const;

  std::vector<at::Tensor> clone() const;
  void assign(const std::vector<at::Tensor>& values);
  // After a step that was rolled back: gives buffers the values of before its forward pass,
  // `before`, where they are running statistics of norms and where they are no longer finite. Other
  // buffers are left alone, because the user may have changed them meanwhile.
  void take_back(const std::vector<at::Tensor>& before);

 private:
  std::vector<std::string> names_;
  std::vector<at::Tensor> buffers_;
};

}  // namespace thinwire
