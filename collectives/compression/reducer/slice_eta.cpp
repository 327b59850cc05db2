#include "collectives/compression/reducer/slice_eta.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include "collectives/compression/codec/typed.h"
#include "collectives/compression/feedback/eta.h"

namespace thinwire {

SliceEta::SliceEta(const Bucket& bucket, std::optional<double> given)
    : learnt_(!given),
      values_(at::full({static_cast<std::int64_t>(bucket.slices.size())}, given.value_or(0),
                       at::kDouble)) {}

void SliceEta::set_blocks(const std::vector<Block>& blocks) {
  slice_of_block_.clear();
  for (const Block& block : blocks) slice_of_block_.push_back(block.slice);
}

void SliceEta::upload(const at::Tensor& like, Queue& queue) {
  if (!values_.defined()) return;
  const auto options = like.options();
  if (!in_queue_.defined()) {
    in_queue_ = at::empty({values_.numel()}, options);
    values_on_host_ = queue.host_memory(in_queue_.nbytes());
  }
  with_type(like.scalar_type(), [&]<typename T>(T) {
    auto* to = static_cast<T*>(values_on_host_.get());
    const double* from = values_.const_data_ptr<double>();
    for (std::int64_t i = 0; i < values_.numel(); ++i) to[i] = static_cast<T>(from[i]);
  });
  queue.copy(in_queue_.data_ptr(), values_on_host_.get(), in_queue_.nbytes());
  const auto sums = 2 * static_cast<std::int64_t>(slice_of_block_.size());
  if (!learnt_ || (energy_.defined() && energy_.numel() == sums)) return;
  energy_ = at::empty({sums}, options);
  energy_on_host_ = queue.host_memory(energy_.nbytes());
}

void SliceEta::fetch_energy(Queue& queue) {
  if (!energy_.defined()) return;
  queue.copy(energy_on_host_.get(), energy_.const_data_ptr(), energy_.nbytes());
}

void SliceEta::learn() {
  if (!energy_.defined()) return;
  with_type(energy_.scalar_type(), [&]<typename T>(T) {
    const auto* sums = static_cast<const T*>(energy_on_host_.get());
    std::vector<T> messages(static_cast<std::size_t>(values_.numel()));
    std::vector<T> errors(messages.size());
    for (std::size_t block = 0; block < slice_of_block_.size(); ++block) {
      const auto slice = static_cast<std::size_t>(slice_of_block_[block]);
      messages[slice] += sums[2 * block];
      errors[slice] += sums[2 * block + 1];
    }
    double* eta = values_.data_ptr<double>();
    for (std::size_t slice = 0; slice < messages.size(); ++slice) {
      eta[slice] = learnt_eta(eta[slice], messages[slice], errors[slice]);
    }
  });
}

void SliceEta::visit(const Bucket& bucket, StateVisitor& visitor) {
  if (!learnt_ || !values_.defined()) return;
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    visitor.tensor({.name = "eta/" + bucket.slices[i].name,
                    .kind = StateKind::averaged,
                    .tensor = values_.narrow(0, static_cast<std::int64_t>(i), 1)});
  }
}

}  // namespace thinwire
