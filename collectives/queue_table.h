// A kernel's table in the memory where the kernel runs.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "collectives/queue.h"

namespace thinwire {

// Entries on the host and their copy in the memory of a queue, which is made when they change.
template <typename Entry>
class QueueTable {
 public:
  static_assert(std::is_trivially_copyable_v<Entry>);

  // `like` is on the device. What is in the queue may still read the table before.
  void fill(std::vector<Entry> entries, const at::Tensor& like, Queue& queue) {
    const auto bytes = entries.size() * sizeof(Entry);
    before_ = std::exchange(entries_, std::move(entries));
    memory_before_ = std::exchange(
        memory_, at::empty({static_cast<std::int64_t>(bytes)}, like.options().dtype(at::kByte)));
    queue.copy(memory_.data_ptr(), entries_.data(), bytes);
  }
  bool filled() const { return memory_.defined(); }

  const Entry* data() const { return static_cast<const Entry*>(memory_.const_data_ptr()); }
  std::int64_t size() const { return static_cast<std::int64_t>(entries_.size()); }

 private:
  std::vector<Entry> entries_, before_;
  at::Tensor memory_, memory_before_;
};

}  // namespace thinwire
