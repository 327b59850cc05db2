// Memory for what has arrived and cannot be added yet.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace thinwire {

// Hands out blocks of memory, and keeps some that come back so that they are used again while they
// are in the cache. Not thread-safe.
class BlockPool {
 public:
  using Block = std::unique_ptr<char[]>;

  // Only blocks of this size are kept.
  explicit BlockPool(std::int64_t block_bytes) : block_bytes_(block_bytes) {}
  Block take(std::int64_t bytes);
  void give_back(Block block, std::int64_t bytes);

 private:
  std::int64_t block_bytes_;
  std::vector<Block> free_;
};

}  // namespace thinwire
