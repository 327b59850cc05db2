#include "collectives/transfers/block_pool.h"

namespace thinwire {
namespace {

constexpr std::size_t kSpareBlocks = 16;

}  // namespace

BlockPool::Block BlockPool::take(std::int64_t bytes) {
  if (bytes == block_bytes_ && !free_.empty()) {
    Block block = std::move(free_.back());
    free_.pop_back();
    return block;
  }
  return std::make_unique_for_overwrite<char[]>(static_cast<std::size_t>(bytes));
}

void BlockPool::give_back(Block block, std::int64_t bytes) {
  if (bytes == block_bytes_ && free_.size() < kSpareBlocks) free_.push_back(std::move(block));
}

}  // namespace thinwire
