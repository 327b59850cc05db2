// What a reducer's arithmetic costs.
#pragma once

#include <memory>

#include "collectives/compression/reducer/gradient_reducer.h"
#include "collectives/metered.h"

namespace thinwire {

// Decorator: counts the seconds that the host spends in a reducer's stages and commits without
// those in which it waits for operations that report to `meter`. Where the arithmetic runs on a
// device later than it is called, that says nothing.
class TimedReducer final : public GradientReducer {
 public:
  // `meter` must outlive this.
  TimedReducer(std::unique_ptr<GradientReducer> inner, const Meter& meter)
      : inner_(std::move(inner)), meter_(meter) {}

  // So far. Between steps only.
  double arithmetic_seconds() const { return seconds_; }

  void prepare(const Bucket& bucket, int rank, int size) override {
    inner_->prepare(bucket, rank, size);
  }
  void require_possible(const Bucket& bucket, const Layout& layout) const override {
    inner_->require_possible(bucket, layout);
  }
  void relayout(const Bucket& bucket) override { inner_->relayout(bucket); }
  void stage(Bucket& bucket, Communicator& communicator, const StepContext& step) override {
    timed([&] { inner_->stage(bucket, communicator, step); });
  }
  void settle(Communicator& communicator) override {
    timed([&] { inner_->settle(communicator); });
  }
  std::optional<std::string> non_finite(const Bucket& bucket) override {
    return inner_->non_finite(bucket);
  }
  std::optional<std::string> warning(const Bucket& bucket) const override {
    return inner_->warning(bucket);
  }
  void show_estimate(const Bucket& bucket, Bucket& view) override {
    timed([&] { inner_->show_estimate(bucket, view); });
  }
  void commit(Bucket& bucket) override {
    timed([&] { inner_->commit(bucket); });
  }
  void rollback(Bucket& bucket) override { inner_->rollback(bucket); }
  void visit(const Bucket& bucket, StateVisitor& visitor) override {
    inner_->visit(bucket, visitor);
  }
  std::vector<SlicePlan> plan(const Bucket& bucket) const override { return inner_->plan(bucket); }

 private:
  template <typename Call>
  void timed(Call call) {
    const auto start = Clock::now();
    const double waited = meter_.waited();
    call();
    seconds_ +=
        std::chrono::duration<double>(Clock::now() - start).count() - (meter_.waited() - waited);
  }

  std::unique_ptr<GradientReducer> inner_;
  const Meter& meter_;
  double seconds_ = 0;
};

}  // namespace thinwire
