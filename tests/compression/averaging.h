// A reducer with the averages that its options ask for, for tests that drive reducers themselves.
#pragma once

#include <memory>
#include <utility>

#include "collectives/compression/options.h"
#include "collectives/compression/reducer/gradient_average.h"
#include "collectives/compression/reducer/make_reducer.h"

namespace thinwire::testing {

class AveragingReducer final : public GradientReducer {
 public:
  explicit AveragingReducer(Reduction reduction) : reduction_(std::move(reduction)) {}

  void prepare(const Bucket& bucket, int rank, int size) override {
    reduction_.reducer->prepare(bucket, rank, size);
    reduction_.before->prepare(bucket);
  }
  void require_possible(const Bucket& bucket, const Layout& layout) const override {
    reduction_.reducer->require_possible(bucket, layout);
  }
  void relayout(const Bucket& bucket) override {
    reduction_.reducer->relayout(bucket);
    reduction_.before->relayout(bucket);
  }
  void stage(Bucket& bucket, Communicator& communicator, const StepContext& step) override {
    reduction_.before->before_reduce(bucket, step);
    reduction_.reducer->stage(bucket, communicator, step);
  }
  void settle(Communicator& communicator) override { reduction_.reducer->settle(communicator); }
  std::optional<std::string> non_finite(const Bucket& bucket) override {
    return reduction_.reducer->non_finite(bucket);
  }
  void show_estimate(const Bucket& bucket, Bucket& view) override {
    reduction_.reducer->show_estimate(bucket, view);
  }
  void commit(Bucket& bucket) override {
    reduction_.reducer->commit(bucket);
    reduction_.before->commit(bucket);
  }
  void rollback(Bucket& bucket) override { reduction_.reducer->rollback(bucket); }
  void visit(const Bucket& bucket, StateVisitor& visitor) override {
    reduction_.reducer->visit(bucket, visitor);
    reduction_.before->visit(bucket, visitor);
  }
  std::vector<SlicePlan> plan(const Bucket& bucket) const override {
    return reduction_.reducer->plan(bucket);
  }

 private:
  Reduction reduction_;
};

// What `make` makes, behind averages where the options ask for them.
template <typename Make>
std::unique_ptr<GradientReducer> with_averages(CompressionOptions options, const Make& make,
                                               const ReducerDevice& device = {}) {
  const double momentum = std::exchange(options.feedback.momentum, 0);
  Reduction reduction{make(options), nullptr};
  if (momentum == 0) return std::move(reduction.reducer);
  reduction.before = std::make_unique<GradientAverage>(*reduction.reducer, momentum, device);
  return std::make_unique<AveragingReducer>(std::move(reduction));
}

}  // namespace thinwire::testing
