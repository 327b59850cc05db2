// A kernel's table in the memory where the kernel runs.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "collectives/queue.h"

namespace thinwire {

// A list and its copy in the memory of a queue, which is made anew when the list changes.
template <typename Entry>
class QueueTable {
 public:
  static_assert(std::is_trivially_copyable_v<Entry>);

  // `like` is on the device. What is in the queue may still read the table before.
  void fill(const std::vector<Entry>& entries, const at::Tensor& like, Queue& queue) {
    const auto bytes = entries.size() * sizeof(Entry);
    size_ = static_cast<std::int64_t>(entries.size());
    memory_before_ = std::exchange(
        memory_, at::empty({static_cast<std::int64_t>(bytes)}, like.options().dtype(at::kByte)));
    if (bytes == 0) return;
    // A copy from memory that the device cannot read by itself would make the host wait.
    on_host_before_ = std::exchange(on_host_, queue.host_memory(bytes));
    std::memcpy(on_host_.get(), entries.data(), bytes);
    queue.copy(memory_.data_ptr(), on_host_.get(), bytes);
  }
  bool filled() const { return memory_.defined(); }

  const Entry* data() const { return static_cast<const Entry*>(memory_.const_data_ptr()); }
  std::int64_t size() const { return size_; }
  // The list itself, for the host.
  std::span<const Entry> entries() const {
    if (size_ == 0) return {};
    return {static_cast<const Entry*>(on_host_.get()), static_cast<std::size_t>(size_)};
  }

 private:
  std::int64_t size_ = 0;
  std::shared_ptr<void> on_host_, on_host_before_;
  at::Tensor memory_, memory_before_;
};

}  // namespace thinwire
