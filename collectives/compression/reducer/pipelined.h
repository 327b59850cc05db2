// Coding, feedback and exchange in one pass over memory per stage, and overlapped with the wire.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "collectives/compression/exchange/exchange.h"
#include "collectives/compression/kernels/kernels.h"
#include "collectives/compression/options.h"
#include "collectives/compression/reducer/dense_message.h"
#include "collectives/compression/reducer/finite_flag.h"
#include "collectives/compression/reducer/live_order.h"
#include "collectives/compression/reducer/measured_eta.h"
#include "collectives/compression/reducer/owners.h"
#include "collectives/compression/reducer/reducer_device.h"
#include "collectives/compression/reducer/saturation.h"
#include "collectives/compression/reducer/slices.h"
#include "collectives/compression/reducer/tracker_renewal.h"
#include "collectives/compression/undecoded.h"
#include "collectives/queue_table.h"

namespace thinwire {

// Reduces through kernels that are put on a queue. A bucket goes in segments: while one is on the
// wire, the next is encoded and the one before reduced; the last ones of a bucket travel while the
// next bucket begins. The host waits once per step, in the first `non_finite`.
//
// Where a slice is partly live, gradient and state are in the order of `LiveOrder` from a stage on:
// the gradient until the step ends, the state until somebody looks at it or the layout changes.
class PipelinedReducer final : public GradientReducer {
 public:
  // `options` are resolved.
  PipelinedReducer(const CompressionOptions& options, const ReducerDevice& device);

  void prepare(const Bucket& bucket, int rank, int size) override;
  void require_possible(const Bucket& bucket, const Layout& layout) const override;
  void relayout(const Bucket& bucket) override;
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
  // One scale per block of the table; undefined where the residuals are what was not sent.
  struct Sent {
    at::Tensor now, next;
  };

  // When what came back is decoded.
  enum class Decoding {
    on_arrival,  // while the rest is on the wire, to memory that is of no use after a rollback
    at_commit,   // over what the verdict makes of no use
    by_reader,   // where it is needed (EstimateForm::undecoded)
  };

  // One bucket's state and buffers.
  struct BucketState {
    std::vector<Chunk> chunks;  // one per owner; a single one where nobody owns
    std::size_t owner = 0;      // which of them is this rank's
    int size = 1;
    at::ScalarType dtype = at::kFloat;

    // As the bucket's layout is.
    Layout layout;
    LiveOrder order;
    QueueTable<Block> table;
    std::int32_t largest_block = 0;  // values
    std::shared_ptr<UndecodedEstimate>
        undecoded;  // the table's blocks; null if nobody asked for it
    std::vector<Segment> segments;
    std::int64_t bytes = 0;      // of the packed message
    std::int64_t own_bytes = 0;  // of them, of the blocks that this rank owns

    // Error feedback has the residuals alone, no feedback nothing.
    EControlState state;
    bool state_is_in_order = false;  // in that of `order`; else as the bucket's elements lie
    // The residuals are the last step's messages, and what was not sent follows from them and the
    // scales `sent`, formed where it is read (Residual::sent).
    bool residual_is_message = false;
    Sent sent, owner_sent;
    std::vector<at::Tensor> before;  // of the layout before, which the queue may still use
    std::optional<MeasuredEta> measured;
    std::shared_ptr<void> eta_on_host;  // the queue may still read it
    TrackerRenewal renewal;
    std::optional<Saturation> saturation;  // where the coding clamps

    // From the stage to the commit.
    at::Tensor owner_next, mean_tracker_next;
    Decoding decoding = Decoding::at_commit;
    at::Tensor decoded;       // what is decoded on arrival; afterwards a spare buffer
    at::Tensor shown;         // an estimate that was asked for before the verdict
    at::Tensor own_gradient;  // of a step that goes uncompressed, as the next one
    DenseMessage dense;
    PayloadBuffers buffers;
    FiniteFlag flag;
    std::chrono::milliseconds timeout{};
    bool staged_dense = false;
  };

  BucketState& state_of(const Bucket& bucket);
  bool has_owners() const { return exchange_->has_owners(); }
  bool keeps_messages() const {
    return options_.feedback.kind == FeedbackKind::error_feedback && codecs_.codec() != nullptr &&
           codecs_.codec()->keeps_messages();
  }
  template <typename T>
  static T* energy_of(BucketState& here, std::int64_t first_block);
  // The part of the bucket that this rank owns.
  Range owned(const BucketState& here) const {
    return has_owners() ? here.chunks[here.owner].range() : Range{};
  }

  // Takes over the bucket's layout, if it has another one than before.
  void adopt_layout(const Bucket& bucket, BucketState& here);
  // The table of a layout: for each owner its blocks, in the order of its pieces.
  std::vector<std::vector<Block>> blocks_of(const Bucket& bucket, const BucketState& here) const;
  void lay_out_segments(const Bucket& bucket, BucketState& here);
  void set_fixed_eta(const Bucket& bucket, BucketState& here);
  // Brings all state into the order of the layout, and back.
  void bring_into_order(const Bucket& bucket, BucketState& here);
  void bring_out_of_order(const Bucket& bucket, BucketState& here);
  // The residuals become what was not sent.
  void form_errors(BucketState& here);
  void reserve_buffers(const Bucket& bucket, BucketState& here);
  Decoding decoding_of(const BucketState& here, EstimateForm form) const;
  void prepare_decoding(const Bucket& bucket, BucketState& here);

  template <typename T>
  void stage_dense(Bucket& bucket, BucketState& here, Communicator& communicator);
  template <typename T>
  void stage_compressed(Bucket& bucket, BucketState& here, Communicator& communicator,
                        const StepContext& step);
  template <typename T>
  void reduce_own(BucketState& here, const Segment& segment, std::uint64_t key);
  template <typename T>
  void take_in(BucketState& here, const Segment& segment);
  // The segment's part of `into`.
  template <typename T>
  void decode(const BucketState& here, const Segment& segment, const at::Tensor& into);
  // What the step made of the absent slices' state becomes what it was.
  void hold_state_of_absent(const Bucket& bucket, BucketState& here);
  // into := into + mean of what came, in a part of the table, without absent slices.
  template <typename T>
  void integrate(const Bucket& bucket, const BucketState& here, std::int64_t first_block,
                 std::int64_t block_count, const Received& from, const at::Tensor& into);
  template <typename T>
  void decode_for_show(const Bucket& bucket, BucketState& here);
  template <typename T>
  void commit_dense(Bucket& bucket, BucketState& here);
  template <typename T>
  void commit_compressed(Bucket& bucket, BucketState& here);
  template <typename T>
  void commit_trackers(Bucket& bucket, BucketState& here);

  CompressionOptions options_;
  SliceCodecs codecs_;
  ReducerDevice device_;
  std::unique_ptr<Exchange> exchange_;
  std::vector<BucketState*> staged_;
  bool host_is_behind_ = false;        // the host has not waited for what was staged last
  std::map<int, BucketState> states_;  // by bucket index
};

}  // namespace thinwire
