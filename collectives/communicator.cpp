#include "collectives/communicator.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <numeric>

namespace thinwire {

std::vector<double> all_reduce_sum(Communicator& communicator, std::vector<double> values) {
  at::Tensor tensor = at::empty({static_cast<std::int64_t>(values.size())}, at::kDouble);
  std::copy(values.begin(), values.end(), tensor.data_ptr<double>());
  communicator.all_reduce(tensor, ReduceOp::sum)->wait();
  std::copy_n(tensor.data_ptr<double>(), values.size(), values.begin());
  return values;
}

std::vector<std::int64_t> all_reduce_max(Communicator& communicator,
                                         std::vector<std::int64_t> values) {
  at::Tensor tensor = at::empty({static_cast<std::int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), tensor.data_ptr<std::int64_t>());
  communicator.all_reduce(tensor, ReduceOp::max)->wait();
  std::copy_n(tensor.data_ptr<std::int64_t>(), values.size(), values.begin());
  return values;
}

std::vector<std::string> all_gather_text(Communicator& communicator, const std::string& text) {
  const auto size = static_cast<std::size_t>(communicator.size());
  at::Tensor length = at::empty({1}, at::kLong);
  *length.data_ptr<std::int64_t>() = static_cast<std::int64_t>(text.size());
  at::Tensor lengths = at::empty({communicator.size()}, at::kLong);
  communicator.all_gather(lengths, length, {})->wait();
  const Counts counts(lengths.data_ptr<std::int64_t>(), lengths.data_ptr<std::int64_t>() + size);

  at::Tensor mine = at::empty({static_cast<std::int64_t>(text.size())}, at::kByte);
  std::memcpy(mine.data_ptr(), text.data(), text.size());
  at::Tensor all =
      at::empty({std::accumulate(counts.begin(), counts.end(), std::int64_t{0})}, at::kByte);
  communicator.all_gather(all, mine, counts)->wait();
  std::vector<std::string> texts;
  const char* from = static_cast<const char*>(all.data_ptr());
  for (const std::int64_t count : counts) {
    texts.emplace_back(from, static_cast<std::size_t>(count));
    from += count;
  }
  return texts;
}

std::string broadcast_text(Communicator& communicator, const std::string& text, int root) {
  at::Tensor length = at::empty({1}, at::kLong);
  *length.data_ptr<std::int64_t>() = static_cast<std::int64_t>(text.size());
  communicator.broadcast(length, root)->wait();
  at::Tensor bytes = at::empty({*length.data_ptr<std::int64_t>()}, at::kByte);
  if (communicator.rank() == root) std::memcpy(bytes.data_ptr(), text.data(), text.size());
  communicator.broadcast(bytes, root)->wait();
  return {static_cast<const char*>(bytes.data_ptr()), static_cast<std::size_t>(bytes.numel())};
}

}  // namespace thinwire
