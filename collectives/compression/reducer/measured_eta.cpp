#include "collectives/compression/reducer/measured_eta.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "collectives/compression/codec/typed.h"
#include "collectives/compression/feedback/eta.h"

namespace thinwire {

void MeasuredEta::set_blocks(const std::vector<Block>& blocks, const at::Tensor& eta,
                             Queue& queue) {
  places_.clear();
  for (std::size_t row = 0; row < blocks.size(); ++row) {
    places_.push_back({blocks[row].begin, row, static_cast<std::size_t>(blocks[row].slice)});
  }
  std::sort(places_.begin(), places_.end(),
            [](const Place& a, const Place& b) { return a.begin < b.begin; });
  energy_ = at::empty({2 * static_cast<std::int64_t>(blocks.size())}, eta.options());
  energy_on_host_ = queue.host_memory(energy_.nbytes());
  // Kept: what is in the queue may still read it.
  if (!eta_on_host_) eta_on_host_ = queue.host_memory(eta.nbytes());
}

void MeasuredEta::fetch(const at::Tensor& eta, Queue& queue) {
  queue.copy(energy_on_host_.get(), energy_.const_data_ptr(), energy_.nbytes());
  queue.copy(eta_on_host_.get(), eta.const_data_ptr(), eta.nbytes());
}

void MeasuredEta::learn(const Bucket& bucket, at::Tensor& eta, Queue& queue) {
  with_type(eta.scalar_type(), [&]<typename T>(T) {
    const auto* sums = static_cast<const T*>(energy_on_host_.get());
    std::vector<T> messages(static_cast<std::size_t>(eta.numel()));
    std::vector<T> errors(messages.size());
    for (const Place& place : places_) {
      if (bucket.slices[place.slice].absent) continue;
      messages[place.slice] += sums[2 * place.row];
      errors[place.slice] += sums[2 * place.row + 1];
    }
    auto* values = static_cast<T*>(eta_on_host_.get());
    for (std::size_t slice = 0; slice < messages.size(); ++slice) {
      values[slice] = next_eta(values[slice], messages[slice], errors[slice]);
    }
  });
  queue.copy(eta.data_ptr(), eta_on_host_.get(), eta.nbytes());
}

}  // namespace thinwire
