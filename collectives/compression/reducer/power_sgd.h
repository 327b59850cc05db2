// PowerSGD: matrices travel as two factors of a few columns (Vogels, Karimireddy, Jaggi 2019).
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "collectives/compression/kernels/low_rank.h"
#include "collectives/compression/options.h"
#include "collectives/compression/reducer/dense_message.h"
#include "collectives/compression/reducer/finite_flag.h"
#include "collectives/compression/reducer/live_order.h"
#include "collectives/compression/reducer/owners.h"
#include "collectives/compression/reducer/reducer_device.h"
#include "collectives/queue_table.h"

namespace thinwire {

// A tensor of two or more dimensions is a matrix M of shape[0] rows. Per step, with g the gradient,
// e the residual and n ranks:
//
//   M_i = g_i + e_i
//   Q   = the last step's factor, orthonormal
//   P   = mean over ranks of M_i Q, orthonormal
//   Q_i = M_i^T P, and their mean is the new Q
//   estimate = P Q^T,  e_i := M_i - P Q_i^T
//
// The residual is a rank's own, so it stays bounded where the ranks' gradients differ for ever;
// the published one, M_i - P Q^T, does not and has the same estimates. Without feedback e is 0.
//
// Uncompressed slices travel as they are and keep no residual. A gradient so large that M Q is not
// finite counts as not finite.
//
// Each bucket is two all-reduces: P of all matrices with the uncompressed values beside them, then
// Q. Buckets overlap: with buckets 0, 1, 2 they go P0 P1 Q0 P2 Q1 Q2, whatever ends first. The host
// waits for P of a bucket after the next one's was sent, for Q in `settle`.
//
// A column of P or Q is dropped if Gram and Schmidt's process leaves no more of it than the share
// `orthogonalization_epsilon` (and not less than 16 units of rounding). A dropped column of P is
// zero in this step. A dropped column of Q is drawn anew from seed, step and parameter, alike on
// all ranks; so is all of Q at the first step, and at every step without warm start.
//
// A layout may give a slice another rank, 0 for none: the leading columns of the factors stay, and
// new ones are drawn. Of a slice that is partly live whole rows are a matrix of fewer rows;
// anything else of it goes uncompressed. A matrix that goes uncompressed for a while sends its
// residual then, with the gradient.
//
// State: "residual/NAME", averaged, of the parameter's shape; with warm start "factor/NAME",
// replicated, Q^T of rank x columns (zero before the first step; what it is set to is used).
class PowerSgdReducer final : public GradientReducer {
 public:
  // `options` are resolved and hold a PowerSgd. Throws `UsageError` for values that cannot be.
  PowerSgdReducer(const CompressionOptions& options, const ReducerDevice& device);

  void prepare(const Bucket& bucket, int rank, int size) override;
  void require_possible(const Bucket& bucket, const Layout& layout) const override;
  void relayout(const Bucket& bucket) override;
  void stage(Bucket& bucket, Communicator& communicator, const StepContext& step) override;
  void settle(Communicator& communicator) override;
  std::optional<std::string> non_finite(const Bucket& bucket) override;
  void show_estimate(const Bucket& bucket, Bucket& view) override;
  void commit(Bucket& bucket) override;
  void rollback(Bucket& bucket) override;
  void visit(const Bucket& bucket, StateVisitor& visitor) override;
  std::vector<SlicePlan> plan(const Bucket& bucket) const override;

 private:
  // Uncompressed values in the first message: the live part of a slice.
  struct Passenger {
    std::size_t slice = 0;
    std::int64_t begin = 0;  // in the message
    std::int64_t count = 0;
  };
  // What a bucket waits for.
  enum class InFlight { nothing, mean, left, right };

  // What a bucket's layout makes of one slice.
  struct SliceState {
    LowRankShape whole;       // of rank 0: uncompressed
    LowRankShape live;        // of its live rows
    std::int64_t factor = 0;  // the place of the factor of `whole` in the state
    bool has_residual = false;
  };

  // One bucket's state and buffers.
  struct BucketState {
    std::vector<Chunk> chunks;  // one: nobody owns a part
    at::Tensor residual;        // exchanges its storage with the gradient at commit
    // The residual is the last step's M_i, and what was not sent is it less P Q_i^T, `kept_left`
    // and `kept_right`, formed where it is read.
    bool residual_is_matrix = false;
    bool residual_is_in_order = false;  // in that of `order`; else as the bucket's elements lie
    at::Tensor factors;                 // undefined without warm start

    // As the bucket's layout is.
    Layout layout;
    LiveOrder order;
    std::vector<SliceState> slices;
    std::vector<LowRankMatrix> matrices;
    std::vector<std::size_t> matrix_slices;  // whose they are
    std::vector<Passenger> passengers;
    QueueTable<Block> owing;  // of those that have a residual, as raw blocks of the first message
    QueueTable<Block> live, first, second;  // of the bucket and of both messages, to be checked
    DenseMessage dense;
    QueueTable<LowRankMatrix> table;
    QueueTable<LowRankTile> bands, tiles;
    std::int64_t largest_rank = 0;
    std::int64_t top_tile_count = 0;
    std::int64_t left_numel = 0;  // of the message; the passengers are behind
    at::Tensor message, right, own_right;
    at::Tensor kept_left, kept_right;
    std::vector<at::Tensor> before;  // those of the layout before, which the queue may still read
    at::Tensor vectors, partial;     // what the kernels need on a device

    Bucket* bucket = nullptr;  // from stage to settle
    InFlight in_flight = InFlight::nothing;
    std::unique_ptr<Work> work;
    bool staged_dense = false;
    at::Tensor shown;  // an estimate that was asked for before the verdict
    FiniteFlag flag;
    std::chrono::milliseconds timeout{};
  };

  BucketState& state_of(const Bucket& bucket);
  // Whether the slice may be compressed at all.
  bool is_matrix(const Slice& slice) const;
  LowRankShape whole_shape(const Bucket& bucket, const Layout& layout, std::size_t slice) const;
  LowRankShape live_shape(const Bucket& bucket, std::size_t slice) const;
  double tolerance(at::ScalarType dtype) const;
  static LowRankTables tables(const BucketState& here);
  static double* vectors(const BucketState& here);
  // Takes over the bucket's layout, if it has another one than before.
  void adopt_layout(const Bucket& bucket, BucketState& here);
  void lay_out_slices(const Bucket& bucket, BucketState& here);
  void lay_out_messages(const Bucket& bucket, BucketState& here);
  void lay_out_matrices(const Bucket& bucket, BucketState& here);
  void bring_out_of_order(const Bucket& bucket, BucketState& here);
  void start(BucketState& here, at::Tensor tensor, InFlight in_flight, Communicator& communicator);
  // Waits for what is in flight, divides the sum by the number of ranks, and flags what is not
  // finite.
  void receive(BucketState& here, int ranks);
  void send_left(Bucket& bucket, BucketState& here, Communicator& communicator,
                 const StepContext& step);
  void send_right(BucketState& here, Communicator& communicator);
  // to := from, `count` elements from the given ones on, by the queue.
  void copy(const at::Tensor& to, std::int64_t to_begin, const at::Tensor& from,
            std::int64_t from_begin, std::int64_t count);

  void commit_compressed(Bucket& bucket, BucketState& here);
  // The residual becomes what was not sent.
  void form_residual(BucketState& here);
  // Before the estimate is formed: in absent slices the gradient becomes the residual.
  void hold_residual_of_absent(Bucket& bucket, BucketState& here);
  // Afterwards: nothing was sent of absent matrices.
  void forget_factors_of_absent(const Bucket& bucket, BucketState& here);

  // The arithmetic of `stage`, of what follows the first message, and of `commit`.
  void multiply_left(Bucket& bucket, BucketState& here, const StepContext& step);
  void multiply_right(BucketState& here);
  void multiply_back(const Bucket& bucket, BucketState& here, const at::Tensor& into);
  void keep_factors(const Bucket& bucket, BucketState& here);
  PowerSgd power_;
  CompressionPolicy policy_;
  bool feedback_;
  ReducerDevice device_;
  std::vector<BucketState*> underway_;  // of this step, in the order of their stages
  bool host_is_behind_ = false;         // the host has not waited for what was staged last
  std::map<int, BucketState> states_;   // by bucket index
};

}  // namespace thinwire
