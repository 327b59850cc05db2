// What the tests of PowerSGD share.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/compression/options.h"
#include "tests/compression/support.h"

namespace thinwire::testing {

inline CompressionOptions power_sgd(std::int64_t rank,
                                    FeedbackKind feedback = FeedbackKind::error_feedback) {
  return {PowerSgd{.matrix_approximation_rank = rank}, {feedback}, ExchangeKind::all_reduce};
}

// Fills state from tensors by name; what is not named stays.
class Overwrite final : public StateVisitor {
 public:
  explicit Overwrite(std::map<std::string, at::Tensor> values) : values_(std::move(values)) {}
  void tensor(const StateEntry& entry) override {
    const auto found = values_.find(entry.name);
    if (found != values_.end()) entry.tensor.copy_(found->second.view(entry.tensor.sizes()));
  }
  void counter(const std::string&, std::int64_t&) override {}

 private:
  std::map<std::string, at::Tensor> values_;
};

// A copy of the state called `name`; undefined if there is none.
inline at::Tensor state_of(GradientReducer& reducer, const Bucket& bucket,
                           const std::string& name) {
  Snapshot snapshot;
  reducer.visit(bucket, snapshot);
  for (const auto& [entry, copy] : snapshot.entries) {
    if (entry.name == name) return copy;
  }
  return {};
}

inline at::Tensor slice_of(const at::Tensor& flat, const Slice& slice) {
  return flat.narrow(0, slice.offset, slice.numel);
}

// As the matrix that PowerSGD makes of it.
inline at::Tensor matrix_of(const at::Tensor& flat, const Slice& slice) {
  return slice_of(flat, slice).view({slice.shape.front(), -1});
}

// One whole step; the estimate is in the bucket afterwards.
inline void reduce(GradientReducer& reducer, Bucket& bucket, Communicator& communicator,
                   const at::Tensor& gradient, const StepContext& step) {
  bucket.gradient.copy_(gradient);
  reducer.stage(bucket, communicator, step);
  reducer.settle(communicator);
  check(!reducer.non_finite(bucket).has_value(), "the gradient is finite");
  reducer.commit(bucket);
}

}  // namespace thinwire::testing
