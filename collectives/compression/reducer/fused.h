// Codec, feedback and exchange in one pass over memory per stage.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "collectives/compression/exchange/layout.h"
#include "collectives/compression/kernels/kernels.h"
#include "collectives/compression/options.h"
#include "collectives/compression/reducer/slices.h"
#include "collectives/queue_table.h"

namespace thinwire {

// Does what ComposedReducer does for the codecs none and sign, to the bit, through kernels put on a
// queue. The host waits once per step, in the first `non_finite` after the last `stage`.
class FusedReducer final : public GradientReducer {
 public:
  // `options` are resolved.
  FusedReducer(const CompressionOptions& options, std::unique_ptr<Codec> codec,
               const ReducerLaunch& launch);

  void prepare(const Bucket& bucket, int rank, int size) override;
  void stage(Bucket& bucket, Communicator& communicator, const StepContext& step) override;
  void settle(Communicator& communicator) override;
  std::optional<std::string> non_finite(const Bucket& bucket) override;
  void commit(Bucket& bucket) override;
  void rollback(Bucket& bucket) override;
  void visit(const Bucket& bucket, StateVisitor& visitor) override;
  std::vector<SlicePlan> plan(const Bucket& bucket) const override;

 private:
  // One bucket's state and buffers.
  struct Path {
    std::vector<Chunk> chunks;  // one per owner
    std::size_t rank = 0;
    std::vector<bool> frozen;  // as the table below knows them
    QueueTable<Block> table;
    std::vector<std::int64_t> first_block;  // of each chunk, and the end
    Counts bytes;                           // payload of each chunk
    at::Tensor residual, owner_residual, owner_next;
    at::Tensor messages, arrived, reply, received;
    at::Tensor flag;                     // int32: the first slice that is not finite
    std::shared_ptr<void> flag_on_host;  // its copy
    std::chrono::milliseconds timeout{};
    bool staged_dense = false;

    std::int64_t chunk_blocks(std::size_t chunk) const {
      return first_block[chunk + 1] - first_block[chunk];
    }
  };

  Path& path(const Bucket& bucket);
  void lay_out_blocks(const Bucket& bucket, Path& here);
  void reserve_buffers(const Bucket& bucket, Path& here);
  template <typename T>
  void stage_typed(Bucket& bucket, Path& here, Communicator& communicator);

  CompressionOptions options_;
  SliceCodecs codecs_;
  ReducerLaunch launch_;
  bool host_is_behind_ = false;  // the host has not waited for what was staged last
  std::map<int, Path> paths_;    // by bucket index
};

}  // namespace thinwire
