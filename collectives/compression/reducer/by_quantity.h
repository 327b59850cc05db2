// A reducer for gradients and one for what else an optimizer exchanges.
#pragma once

#include <memory>

#include "collectives/compression/reducer/gradient_reducer.h"

namespace thinwire {

// Steps whose quantity is the gradient go to the one, all others to the other, each with residuals
// of its own: what was not sent of gradients is no momentum. The residuals of the one that is not
// asked rest. Those for gradients are shown with "gradient_" before their names.
class ByQuantityReducer final : public GradientReducer {
 public:
  ByQuantityReducer(std::unique_ptr<GradientReducer> gradients,
                    std::unique_ptr<GradientReducer> others);

  void prepare(const Bucket& bucket, int rank, int size) override;
  // Throws for codings of single slices too: they would be those of both.
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
  // Of the other quantities.
  std::vector<SlicePlan> plan(const Bucket& bucket) const override;

 private:
  std::unique_ptr<GradientReducer> gradients_;
  std::unique_ptr<GradientReducer> others_;
  GradientReducer* now_;  // whose step it is
};

}  // namespace thinwire
