// Codec, feedback and exchange in one pass over memory per stage, and overlapped with the wire.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "collectives/compression/exchange/layout.h"
#include "collectives/compression/kernels/kernels.h"
#include "collectives/compression/options.h"
#include "collectives/compression/reducer/coded_gradient.h"
#include "collectives/compression/reducer/dense_message.h"
#include "collectives/compression/reducer/finite_flag.h"
#include "collectives/compression/reducer/measured_eta.h"
#include "collectives/compression/reducer/saturation.h"
#include "collectives/compression/reducer/slices.h"
#include "collectives/compression/reducer/tracker_renewal.h"
#include "collectives/queue_table.h"

namespace thinwire {

// Forms messages, means and estimates with kernels put on a queue; tests/reference has the same to
// the bit in plain code. A bucket goes in segments: while one is on the wire, the next is encoded
// and the one before reduced; the last ones of a bucket travel while the next bucket begins. The
// host waits once per step, in the first `non_finite`.
class FusedReducer final : public GradientReducer {
 public:
  // `options` are resolved.
  FusedReducer(const CompressionOptions& options, std::unique_ptr<Codec> codec,
               const ReducerLaunch& launch);

  void prepare(const Bucket& bucket, int rank, int size) override;
  void stage(Bucket& bucket, Communicator& communicator, const StepContext& step) override;
  void settle(Communicator& communicator) override;
  std::optional<std::string> non_finite(const Bucket& bucket) override;
  std::optional<std::string> warning(const Bucket& bucket) const override;
  void show_estimate(const Bucket& bucket, Bucket& view) override;
  void commit(Bucket& bucket) override;
  void rollback(Bucket& bucket) override;
  void visit(const Bucket& bucket, StateVisitor& visitor) override;
  std::vector<SlicePlan> plan(const Bucket& bucket) const override;

 private:
  // Blocks that travel in one message to each owner: consecutive in the table, owner by owner.
  struct Segment {
    std::int64_t first_block = 0;
    std::int64_t block_count = 0;
    std::int64_t own_first_block = 0;  // of those that this rank owns
    std::int64_t own_block_count = 0;
    std::int64_t begin = 0;      // bytes, in the packed message
    std::int64_t own_begin = 0;  // bytes, in the packed message, of this rank's blocks
    std::int64_t own_sent = 0;   // bytes of this rank's blocks in segments before this one
    Counts bytes;                // for each owner; for all-gather one number
    std::int64_t total = 0;
  };

  // One scale per block of the table; undefined where the residuals are what was not sent.
  struct Sent {
    at::Tensor now, next;
  };

  // When what came back is decoded.
  enum class Decoding {
    on_arrival,  // while the rest is on the wire, to memory that is of no use after a rollback
    at_commit,   // over what the verdict makes of no use
    by_reader,   // where it is needed (EstimateForm::coded)
  };

  // One bucket's state and buffers.
  struct Path {
    std::vector<Chunk> chunks;  // one per owner; a single one where nobody owns
    std::size_t rank = 0;
    std::int64_t size = 1;
    std::vector<bool> frozen;  // as the table below knows them
    QueueTable<Block> table;
    std::int32_t largest_block = 0;        // values
    std::shared_ptr<CodedGradient> coded;  // the table's blocks; null if nobody asked for it
    std::vector<Segment> segments;
    std::int64_t bytes = 0;      // of the packed message
    std::int64_t own_bytes = 0;  // of them, of the blocks that this rank owns
    // Error feedback has the residuals alone, no feedback nothing.
    EControlState state;
    // The residuals are the last step's messages, and what was not sent follows from them and the
    // scales `sent`, formed where it is read (Residual::sent).
    bool residual_is_message = false;
    Sent sent, owner_sent;
    std::optional<MeasuredEta> measured;
    TrackerRenewal renewal;
    std::optional<Saturation> saturation;  // of fp16
    // From the stage to the commit.
    at::Tensor owner_next, mean_tracker_next;
    Decoding decoding = Decoding::at_commit;
    at::Tensor decoded;       // what is decoded on arrival; afterwards a spare buffer
    at::Tensor shown;         // an estimate that was asked for before the verdict
    at::Tensor own_gradient;  // of a step that goes uncompressed, as the next one
    DenseMessage dense;
    at::Tensor messages, arrived, reply, received;
    FiniteFlag flag;
    std::chrono::milliseconds timeout{};
    at::ScalarType dtype = at::kFloat;
    bool staged_dense = false;
  };

  struct InFlight {
    Path* path = nullptr;
    const Segment* segment = nullptr;
    std::uint64_t owner_key = 0;
    std::unique_ptr<Work> work;
  };

  // What came back: `ranks` messages, `stride` bytes apart.
  struct Received {
    const char* payload = nullptr;
    std::int64_t stride = 0;
    std::int32_t ranks = 1;
  };

  Path& path(const Bucket& bucket);
  bool has_owners() const { return options_.exchange != ExchangeKind::all_gather; }
  bool keeps_messages() const {
    return options_.feedback.kind == FeedbackKind::error_feedback &&
           std::holds_alternative<Sign>(options_.codec);
  }
  template <typename T>
  static T* energy_of(Path& here, std::int64_t first_block);
  // The part of the bucket that this rank owns.
  Range owned(const Path& here) const {
    return has_owners() ? here.chunks[here.rank].range() : Range{};
  }
  void lay_out_blocks(const Bucket& bucket, Path& here);
  // The residuals become what was not sent.
  void form_errors(Path& here);
  void reserve_buffers(const Bucket& bucket, Path& here);
  Decoding decoding_of(const Path& here, EstimateForm form) const;
  void prepare_decoding(const Bucket& bucket, Path& here);
  template <typename T>
  void stage_dense(Bucket& bucket, Path& here, Communicator& communicator);
  template <typename T>
  void stage_compressed(Bucket& bucket, Path& here, Communicator& communicator,
                        const StepContext& step);
  template <typename T>
  void reduce_oldest(Communicator& communicator);
  void take_in_oldest();
  Received received(const Path& here, const Segment& segment) const;
  // The segment's part of `into`.
  template <typename T>
  void decode(const Path& here, const Segment& segment, const at::Tensor& into);
  // What the step made of the absent slices' state becomes what it was.
  void hold_state_of_absent(const Bucket& bucket, Path& here);
  // into := into + mean of what came, in a part of the table, without absent slices.
  template <typename T>
  void integrate(const Bucket& bucket, const Path& here, std::int64_t first_block,
                 std::int64_t block_count, const Received& from, const at::Tensor& into);
  template <typename T>
  void decode_for_show(const Bucket& bucket, Path& here);
  template <typename T>
  void commit_dense(Bucket& bucket, Path& here);
  template <typename T>
  void commit_compressed(Bucket& bucket, Path& here);

  CompressionOptions options_;
  SliceCodecs codecs_;
  ReducerLaunch launch_;
  std::deque<InFlight> scattered_;  // to their owners
  std::deque<InFlight> gathered_;   // back to all
  std::vector<Path*> staged_;
  bool host_is_behind_ = false;  // the host has not waited for what was staged last
  std::map<int, Path> paths_;    // by bucket index
};

}  // namespace thinwire
