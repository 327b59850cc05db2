// Buckets with awkward layouts, and their parameters as tensors of their own for torch::optim.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "collectives/base/state.h"
#include "collectives/bucket.h"
#include "optimizers/optimizer.h"

namespace thinwire {

// Two buckets of odd-sized slices with gaps between and behind them, and a scalar. Weights are
// normal, gaps in them zero.
std::vector<Bucket> make_buckets(at::ScalarType weights, at::ScalarType gradient);

// Fills the gradients with normal numbers that depend on `seed` alone, gaps included: an update
// that strays into a gap shows.
void fill_gradients(std::vector<Bucket>& buckets, std::uint64_t seed);

// The slice's part of a bucket's flat tensor, in the parameter's shape.
at::Tensor part(const at::Tensor& flat, const Slice& slice);

// One leaf per slice, in order, with the bucket's weights.
std::vector<at::Tensor> make_leaves(const std::vector<Bucket>& buckets);

// Copies the buckets' gradients into the leaves', multiplied by `scale`.
void copy_gradients(const std::vector<Bucket>& buckets, double scale,
                    std::vector<at::Tensor>& leaves);

std::vector<Bucket> clone(const std::vector<Bucket>& buckets);

// All elements outside slices are zero.
bool gaps_are_zero(const at::Tensor& flat, const Bucket& bucket);

// The largest difference, over all slices, as a fraction of the slice's largest element or of 1,
// the size of an initial weight, where all are smaller (a scalar that passes through zero).
double largest_difference(const std::vector<Bucket>& buckets,
                          const std::vector<at::Tensor>& leaves);

// One step of all buckets, whose gradients are the quantity that the optimizer plans.
void step(Optimizer& optimizer, std::vector<Bucket>& buckets, const StepParameters& parameters);

// Remembers every tensor that it is shown.
class Collector : public StateVisitor {
 public:
  void tensor(const StateEntry& entry) override;
  void counter(const std::string& name, std::int64_t& value) override;
  std::map<std::string, StateEntry> entries;
  std::map<std::string, std::int64_t> counters;
};

// Copies what one optimizer shows into another.
void copy_state(Optimizer& from, Optimizer& to);

}  // namespace thinwire
