// The kernels once more as plain loops over one value after another, straight from the definitions
// of kernels.h; tests/reference/codings.h has the codings.
#pragma once

#include <cstdint>
#include <vector>

#include "collectives/compression/kernels/kernels.h"
#include "tests/reference/codings.h"

namespace thinwire::kernel_oracle {

// What one block's message becomes.
template <typename T>
struct Coded {
  std::vector<char> payload;
  std::vector<T> next;
  T energy[2] = {0, 0};
  T sent = 0;
};

// What a residual of kept messages has left of one.
template <typename T>
std::vector<T> form_error(std::vector<T> messages, T sent) {
  for (T& m : messages) m -= m < 0 ? -sent : sent;
  return messages;
}

// `residual` begins with the block's first element, as the gradient does, `sent` with the block's.
template <typename T>
Coded<T> code(const Block& block, const std::vector<T>& g, const Residual<T>& residual,
              std::uint64_t key) {
  Coded<T> coded;
  coded.next = g;
  const bool keeps_messages = residual.sent != nullptr && block.format.coding == number_of<Sign>;
  std::vector<T> left_of_messages;
  const T* e = residual.error;
  if (keeps_messages) {
    left_of_messages = form_error(std::vector<T>(e, e + block.count), *residual.sent);
    e = left_of_messages.data();
  }
  const T* h = residual.tracker;
  if (block.format.coding == Coding::held) {
    if (e != nullptr) coded.next.assign(e, e + block.count);
    return coded;
  }
  std::vector<T> m = g;
  for (std::size_t i = 0; i < m.size(); ++i) {
    if (h != nullptr) {
      m[i] = (residual.eta[block.slice] * e[i] + g[i]) - h[i];
      coded.next[i] = (e[i] + g[i]) - h[i];
    } else if (e != nullptr) {
      coded.next[i] = m[i] = g[i] + e[i];
    }
  }
  coded.payload = reference::encode_block(block.format, m, key, block.begin);
  const std::vector<T> d =
      reference::decode_block<T>(block.format, block.count, coded.payload.data());
  std::vector<T> squares;
  std::vector<T> left;
  for (std::size_t i = 0; i < m.size(); ++i) {
    if (e != nullptr && !keeps_messages) coded.next[i] -= d[i];
    squares.push_back(m[i] * m[i]);
    left.push_back((m[i] - d[i]) * (m[i] - d[i]));
  }
  if (block.format.coding == Coding::raw) return coded;
  if (keeps_messages) coded.sent = reference::get<T>(coded.payload.data());
  coded.energy[0] = reference::sum_in_lanes(squares);
  coded.energy[1] = reference::sum_in_lanes(left);
  return coded;
}

// The mean of what ranks sent of one block; `payload` is the first rank's.
template <typename T>
std::vector<T> mean_of_block(const Block& block, const char* payload, std::int64_t stride,
                             std::int32_t ranks) {
  std::vector<T> mean(static_cast<std::size_t>(block.count));
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    const std::vector<T> d =
        reference::decode_block<T>(block.format, block.count, payload + rank * stride);
    for (std::size_t i = 0; i < mean.size(); ++i) mean[i] += d[i];
  }
  if (ranks > 1) {
    for (T& x : mean) x /= static_cast<T>(ranks);
  }
  return mean;
}

}  // namespace thinwire::kernel_oracle
