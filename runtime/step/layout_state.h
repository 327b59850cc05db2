// The buckets' layouts as state of a run.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "collectives/base/state.h"
#include "collectives/bucket.h"
#include "runtime/step/transaction.h"

namespace thinwire {

// Gives named parameters other layouts, between steps. Throws `UsageError`, before anything
// changes, for a name that no slice has, and for what the reducer cannot give one.
void relayout(const std::map<std::string, SliceLayout>& parts, std::vector<Bucket>& buckets,
              StepTransaction& transaction);

// The layouts, other than the first one, by the parameter's name.
std::map<std::string, SliceLayout> parts_by_name(const std::vector<Bucket>& buckets);

// Shows how each slice is coded and what of it is live, where that is not as at the beginning, by
// the parameter's name. Which parameters are frozen is the program's to say again.
class LayoutState {
 public:
  // As counters "layout/NAME/...", and of partly live slices a bitmap "layout/NAME".
  void visit(const std::vector<Bucket>& buckets, StateVisitor& visitor);

  // A checkpoint is loaded between the two. The reducers' state has the shapes that the codings
  // give it, so these are set first, from the checkpoint's counters; what is live is known once the
  // bitmaps have been filled in. Throws `DataError` for numbers that cannot be.
  void begin_to_load(const std::map<std::string, std::int64_t>& counters,
                     std::vector<Bucket>& buckets, StepTransaction& transaction);
  void end_of_load(std::vector<Bucket>& buckets, StepTransaction& transaction);
  // Instead of `end_of_load`, where the checkpoint could not be loaded: the layouts of before.
  void load_failed(std::vector<Bucket>& buckets, StepTransaction& transaction);

 private:
  std::map<std::string, at::Tensor> bitmaps_;  // to be filled in, by the parameter's name
  std::vector<Layout> before_;                 // of the buckets, while a checkpoint is loaded
};

}  // namespace thinwire
