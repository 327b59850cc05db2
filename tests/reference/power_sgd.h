// PowerSGD by tensor operations, a message after another.
#pragma once

#include <map>
#include <vector>

#include "collectives/compression/kernels/low_rank.h"
#include "collectives/compression/options.h"

namespace thinwire::reference {

// What reducer/power_sgd.h says, but for the order of a sum's terms. Host memory only; has no
// estimate to show before it commits.
class PowerSgdByTensors final : public GradientReducer {
 public:
  // `options` are resolved and hold a PowerSgd.
  explicit PowerSgdByTensors(const CompressionOptions& options);

  void prepare(const Bucket& bucket, int rank, int size) override;
  void require_possible(const Bucket&, const Layout&) const override {}
  void relayout(const Bucket&) override {}
  void stage(Bucket& bucket, Communicator& communicator, const StepContext& step) override;
  void settle(Communicator&) override {}
  std::optional<std::string> non_finite(const Bucket& bucket) override;
  void show_estimate(const Bucket& bucket, Bucket& view) override;
  void commit(Bucket& bucket) override;
  void rollback(Bucket&) override {}
  void visit(const Bucket& bucket, StateVisitor& visitor) override;
  std::vector<SlicePlan> plan(const Bucket& bucket) const override;

 private:
  struct Matrix {
    std::size_t slice = 0;
    LowRankShape shape;
    at::Tensor left, right, own_right;  // rows x rank, rank x columns, the same
  };
  struct Sent {
    std::size_t slice = 0;
    at::Tensor values;  // flat
  };
  struct State {
    std::vector<at::Tensor> residuals;  // per slice, of its shape as a matrix
    std::vector<at::Tensor> factors;    // per slice, rank x columns
    // Of the step that is under way:
    std::vector<Matrix> matrices;
    std::vector<Sent> uncompressed;
    std::vector<at::Tensor> own;  // per matrix: M
    bool dense = false;
    std::optional<std::size_t> non_finite;
  };

  State& state(const Bucket& bucket) { return states_.at(bucket.index); }
  LowRankShape shape_of(const Slice& slice) const;
  double tolerance(at::ScalarType dtype) const;
  void stage_dense(Bucket& bucket, State& here, Communicator& communicator);
  std::vector<at::Tensor> starts(const Bucket& bucket, const State& here,
                                 const StepContext& step) const;

  PowerSgd power_;
  CompressionPolicy policy_;
  bool feedback_;
  std::map<int, State> states_;  // by bucket index
};

}  // namespace thinwire::reference
