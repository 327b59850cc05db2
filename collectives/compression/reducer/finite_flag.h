// Whether everything in a bucket was finite, as kernels on a queue find out.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "collectives/bucket.h"
#include "collectives/queue.h"

namespace thinwire {

// The first slice of a bucket that is not finite, in a queue's memory, and its copy on the host.
class FiniteFlag {
 public:
  FiniteFlag() = default;
  FiniteFlag(const Bucket& bucket, Queue& queue)
      : slice_(at::zeros({1}, bucket.gradient.options().dtype(at::kInt))),
        on_host_(queue.host_memory(sizeof(std::int32_t))) {}

  // Before the step's kernels. They lower it to the index of a slice, so it is above all of them.
  void clear(Queue& queue) { queue.fill(slice_.data_ptr(), 0x7f, sizeof(std::int32_t)); }
  std::int32_t* data() { return slice_.data_ptr<std::int32_t>(); }
  // Behind the step's kernels.
  void fetch(Queue& queue) {
    queue.copy(on_host_.get(), slice_.const_data_ptr(), sizeof(std::int32_t));
  }
  // Once the queue has run: the name of that slice.
  std::optional<std::string> name(const Bucket& bucket) const {
    const auto slice = static_cast<std::size_t>(*static_cast<const std::int32_t*>(on_host_.get()));
    if (slice >= bucket.slices.size()) return std::nullopt;
    return bucket.slices[slice].name;
  }

 private:
  at::Tensor slice_;
  std::shared_ptr<void> on_host_;
};

}  // namespace thinwire
