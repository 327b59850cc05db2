#include "collectives/compression/reducer/by_quantity.h"

#include <utility>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

// Shows everything with "gradient_" before its name.
class ForGradients final : public StateVisitor {
 public:
  explicit ForGradients(StateVisitor& visitor) : visitor_(visitor) {}
  void tensor(const StateEntry& entry) override {
    StateEntry named = entry;
    named.name = "gradient_" + entry.name;
    visitor_.tensor(named);
  }
  void counter(const std::string& name, std::int64_t& value) override {
    visitor_.counter("gradient_" + name, value);
  }

 private:
  StateVisitor& visitor_;
};

}  // namespace

ByQuantityReducer::ByQuantityReducer(std::unique_ptr<GradientReducer> gradients,
                                     std::unique_ptr<GradientReducer> others)
    : gradients_(std::move(gradients)), others_(std::move(others)), now_(others_.get()) {}

void ByQuantityReducer::prepare(const Bucket& bucket, int rank, int size) {
  gradients_->prepare(bucket, rank, size);
  others_->prepare(bucket, rank, size);
}

void ByQuantityReducer::require_possible(const Bucket& bucket, const Layout& layout) const {
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    if (layout.of(i).coding.is_default()) continue;
    throw UsageError(
        bucket.slices[i].name +
        " cannot have a coding of its own where the optimizer exchanges gradients and momentum by "
        "turns; leave it out");
  }
  gradients_->require_possible(bucket, layout);
  others_->require_possible(bucket, layout);
}

void ByQuantityReducer::relayout(const Bucket& bucket) {
  gradients_->relayout(bucket);
  others_->relayout(bucket);
}

void ByQuantityReducer::stage(Bucket& bucket, Communicator& communicator, const StepContext& step) {
  now_ = step.quantity == Quantity::gradient ? gradients_.get() : others_.get();
  bucket.undecoded.reset();  // the other one's, of the step before
  now_->stage(bucket, communicator, step);
}

void ByQuantityReducer::settle(Communicator& communicator) {
  now_->settle(communicator);
}

std::optional<std::string> ByQuantityReducer::non_finite(const Bucket& bucket) {
  return now_->non_finite(bucket);
}

std::optional<std::string> ByQuantityReducer::warning(const Bucket& bucket) const {
  return now_->warning(bucket);
}

void ByQuantityReducer::show_estimate(const Bucket& bucket, Bucket& view) {
  now_->show_estimate(bucket, view);
}

void ByQuantityReducer::commit(Bucket& bucket) {
  now_->commit(bucket);
}

void ByQuantityReducer::rollback(Bucket& bucket) {
  now_->rollback(bucket);
}

void ByQuantityReducer::visit(const Bucket& bucket, StateVisitor& visitor) {
  others_->visit(bucket, visitor);
  ForGradients named(visitor);
  gradients_->visit(bucket, named);
}

std::vector<SlicePlan> ByQuantityReducer::plan(const Bucket& bucket) const {
  return others_->plan(bucket);
}

}  // namespace thinwire
