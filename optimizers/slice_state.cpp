#include "optimizers/slice_state.h"

#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/compression/reducer/live_order.h"
#include "optimizers/slice_reductions.h"

namespace thinwire {
namespace {

bool is_16_bit(at::ScalarType dtype) {
  return dtype == at::kBFloat16 || dtype == at::kHalf;
}

void check_bucket(const Bucket& bucket, std::size_t position, const Queue& queue) {
  check_equal(static_cast<std::size_t>(bucket.index), position, "bucket index is its position");
  check(bucket.weights.defined(), "an optimizer's bucket has weights");
  check_equal(bucket.weights.numel(), bucket.gradient.numel(), "weights and gradient of a bucket");
  if (queue.on_host() && !(bucket.weights.is_cpu() && bucket.gradient.is_cpu())) {
    throw UsageError(
        fmt::format("bucket {} is on {}, but its optimizer runs on the host; give the optimizer "
                    "that device's kernels, or put the model on the CPU",
                    bucket.index, bucket.weights.device().str()));
  }
  const at::ScalarType weights = bucket.weights.scalar_type();
  const at::ScalarType gradient = bucket.gradient.scalar_type();
  const bool same = weights == gradient && (weights == at::kFloat || weights == at::kDouble);
  if (!same && !(is_16_bit(weights) && gradient == at::kFloat)) {
    throw UsageError(
        fmt::format("bucket {} has {} weights and a {} gradient; use float or double "
                    "for both, or 16-bit weights with a float gradient",
                    bucket.index, c10::toString(weights), c10::toString(gradient)));
  }
}

}  // namespace

SliceState::SliceState(std::span<const Bucket> buckets, const GroupRules& rules,
                       double weight_decay, std::vector<std::string> kinds, const Queue& queue,
                       const std::function<int(const Slice&)>& formula_of)
    : kinds_(std::move(kinds)) {
  check(kinds_.size() <= max_states, "kinds of state fit a BucketView");
  int formulas = 1;
  const ParameterGroup defaults{.weight_decay = weight_decay, .lr_scale = 1};
  for (const Bucket& bucket : buckets) {
    check_bucket(bucket, buckets_.size(), queue);
    BucketState& own = buckets_.emplace_back();
    own.slices = bucket.slices;
    for (const Slice& slice : bucket.slices) {
      own.groups.push_back(resolve_group(rules, slice, defaults));
      own.formulas.push_back(formula_of(slice));
      formulas = std::max(formulas, own.formulas.back() + 1);
    }
    for (std::size_t k = 0; k < kinds_.size(); ++k) {
      own.tensors.push_back(at::zeros({bucket.numel()}, bucket.gradient.options()));
    }
    if (is_16_bit(bucket.weights.scalar_type())) own.master = bucket.weights.to(at::kFloat);
  }
  for (BucketState& own : buckets_) own.tables.resize(static_cast<std::size_t>(formulas));
}

SliceState::BucketState& SliceState::of(const Bucket& bucket) {
  BucketState& own = buckets_.at(static_cast<std::size_t>(bucket.index));
  check_equal(bucket.slices.size(), own.slices.size(), "slices of a bucket");
  return own;
}

void SliceState::relayout(const Bucket& bucket, Queue& queue) {
  adopt_layout(bucket, of(bucket), queue);
}

void SliceState::adopt_layout(const Bucket& bucket, BucketState& own, Queue& queue) {
  if (own.tables.front().filled() && own.layout.is(bucket.layout)) return;
  own.layout = bucket.layout;
  own.absent.clear();  // of no table
  for (at::Tensor& tensor : own.tensors) {
    clear_gone(bucket, tensor, {0, bucket.numel()}, queue);
  }
}

// A slice that is partly live has an entry for each range of live elements.
void SliceState::fill_tables(const Bucket& bucket, BucketState& own, Queue& queue) {
  adopt_layout(bucket, own, queue);
  std::vector<bool> absent;
  for (const Slice& slice : bucket.slices) absent.push_back(slice.absent);
  if (own.tables.front().filled() && absent == own.absent) return;
  own.absent = absent;
  std::vector<std::vector<StepSlice>> tables(own.tables.size());
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    if (bucket.rests(i)) continue;
    const StepSlice whole = step_slice(own, i);
    std::vector<StepSlice>& table = tables[static_cast<std::size_t>(own.formulas[i])];
    if (!bucket.layout.is_partial(i)) {
      table.push_back(whole);
      continue;
    }
    for (const Range& range : bucket.layout.of(i).live.ranges(whole.numel)) {
      StepSlice& part = table.emplace_back(whole);
      part.offset += range.begin;
      part.numel = range.count();
    }
  }
  for (std::size_t f = 0; f < tables.size(); ++f) {
    own.tables[f].fill(tables[f], bucket.gradient, queue);
  }
}

double SliceState::sum(std::span<const Bucket> buckets, std::size_t kind, int formula,
                       Queue& queue) const {
  double sum = 0;
  for (const Bucket& bucket : buckets) {
    const BucketState& own = buckets_.at(static_cast<std::size_t>(bucket.index));
    const at::Tensor& flat = own.tensors.at(kind);
    const at::Tensor on_host = at::zeros(flat.sizes(), flat.options().device(at::kCPU));
    queue.copy(on_host.data_ptr(), flat.const_data_ptr(), flat.nbytes());
    queue.synchronize(Clock::now() + std::chrono::minutes(1));
    // Slices that were absent in this step alone count as in others.
    Bucket all = bucket;
    for (Slice& slice : all.slices) slice.absent = false;
    const std::vector<double> means = reduce_flat(all, on_host, SliceReduction::mean);
    for (std::size_t i = 0; i < own.slices.size(); ++i) {
      if (own.formulas[i] == formula) sum += means[i] * static_cast<double>(own.slices[i].numel);
    }
  }
  return sum;
}

StepSlice SliceState::step_slice(const BucketState& own, std::size_t slice) {
  return {.offset = own.slices[slice].offset,
          .numel = own.slices[slice].numel,
          .weight_decay = own.groups[slice].weight_decay,
          .lr_scale = own.groups[slice].lr_scale};
}

void SliceState::round_from_master(Bucket& bucket, const at::Tensor& master) {
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    if (bucket.rests(i)) continue;
    bucket.weights.narrow(0, slice.offset, slice.numel)
        .copy_(master.narrow(0, slice.offset, slice.numel));
  }
}

void SliceState::visit(StateVisitor& visitor) {
  const auto show = [&visitor](const std::string& kind, const at::Tensor& flat,
                               const Slice& slice) {
    StateEntry entry;
    entry.name = kind + "/" + slice.name;
    entry.kind = StateKind::replicated;
    entry.tensor = flat.narrow(0, slice.offset, slice.numel).view(slice.shape);
    visitor.tensor(entry);
  };
  for (BucketState& own : buckets_) {
    for (const Slice& slice : own.slices) {
      for (std::size_t k = 0; k < kinds_.size(); ++k) show(kinds_[k], own.tensors[k], slice);
      if (own.master.defined()) show("master", own.master, slice);
    }
  }
}

}  // namespace thinwire
