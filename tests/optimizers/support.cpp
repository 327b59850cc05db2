#include "tests/optimizers/support.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace thinwire {
namespace {

at::Tensor normal(std::int64_t numel, std::uint64_t seed, at::ScalarType dtype) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return torch::randn({numel}, generator, torch::dtype(dtype));
}

Slice make_slice(std::string name, std::vector<std::int64_t> shape, std::int64_t offset) {
  Slice slice{.name = std::move(name), .shape = std::move(shape), .offset = offset, .numel = 1};
  for (const std::int64_t size : slice.shape) slice.numel *= size;
  return slice;
}

}  // namespace

std::vector<Bucket> make_buckets(at::ScalarType weights, at::ScalarType gradient) {
  std::vector<Bucket> buckets(2);
  buckets[0].slices = {make_slice("head.bias", {7}, 0), make_slice("head.weight", {7, 5}, 16),
                       make_slice("conv.weight", {3, 1, 3, 3}, 64)};
  buckets[1].slices = {make_slice("gain", {}, 0), make_slice("norm.weight", {33}, 16)};
  const std::vector<std::int64_t> sizes = {112, 64};
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    Bucket& bucket = buckets[b];
    bucket.index = static_cast<int>(b);
    bucket.weights = torch::zeros({sizes[b]}, weights);
    bucket.gradient = torch::zeros({sizes[b]}, gradient);
    for (const Slice& slice : bucket.slices) {
      part(bucket.weights, slice)
          .copy_(normal(slice.numel, 100 + static_cast<std::uint64_t>(slice.numel), weights)
                     .view(slice.shape));
    }
  }
  return buckets;
}

void fill_gradients(std::vector<Bucket>& buckets, std::uint64_t seed) {
  for (Bucket& bucket : buckets) {
    bucket.gradient.copy_(normal(bucket.numel(),
                                 2 * seed + static_cast<std::uint64_t>(bucket.index),
                                 bucket.gradient.scalar_type()));
  }
}

at::Tensor part(const at::Tensor& flat, const Slice& slice) {
  return flat.narrow(0, slice.offset, slice.numel).view(slice.shape);
}

std::vector<at::Tensor> make_leaves(const std::vector<Bucket>& buckets) {
  std::vector<at::Tensor> leaves;
  for (const Bucket& bucket : buckets) {
    for (const Slice& slice : bucket.slices) {
      leaves.push_back(part(bucket.weights, slice)
                           .to(bucket.gradient.scalar_type(), /*non_blocking=*/false, /*copy=*/true)
                           .requires_grad_());
    }
  }
  return leaves;
}

void copy_gradients(const std::vector<Bucket>& buckets, double scale,
                    std::vector<at::Tensor>& leaves) {
  std::size_t leaf = 0;
  for (const Bucket& bucket : buckets) {
    for (const Slice& slice : bucket.slices) {
      leaves[leaf++].mutable_grad() = part(bucket.gradient, slice).mul(scale);
    }
  }
}

std::vector<Bucket> clone(const std::vector<Bucket>& buckets) {
  std::vector<Bucket> copies = buckets;
  for (Bucket& bucket : copies) {
    bucket.weights = bucket.weights.clone();
    bucket.gradient = bucket.gradient.clone();
  }
  return copies;
}

bool gaps_are_zero(const at::Tensor& flat, const Bucket& bucket) {
  at::Tensor outside = flat.clone();
  for (const Slice& slice : bucket.slices) part(outside, slice).zero_();
  return outside.count_nonzero().item<std::int64_t>() == 0;
}

double largest_difference(const std::vector<Bucket>& buckets,
                          const std::vector<at::Tensor>& leaves) {
  double largest = 0;
  std::size_t leaf = 0;
  for (const Bucket& bucket : buckets) {
    for (const Slice& slice : bucket.slices) {
      const at::Tensor expected = leaves[leaf++].detach().to(torch::kDouble);
      const at::Tensor actual = part(bucket.weights, slice).to(torch::kDouble);
      const double difference =
          ((actual - expected).abs().max() / expected.abs().max().clamp_min(1)).item<double>();
      // A NaN has to show, so no std::max.
      if (!(difference <= largest)) largest = difference;
    }
  }
  return largest;
}

void step(Optimizer& optimizer, std::vector<Bucket>& buckets, const StepParameters& parameters) {
  for (Bucket& bucket : buckets) optimizer.after_reduce(bucket, parameters);
  optimizer.end_step(buckets, parameters.committed_step);
}

void Collector::tensor(const StateEntry& entry) {
  EXPECT_TRUE(entries.emplace(entry.name, entry).second) << entry.name << " is shown twice";
}

void Collector::counter(const std::string& name, std::int64_t& value) {
  EXPECT_TRUE(counters.emplace(name, value).second) << name << " is shown twice";
}

void copy_state(Optimizer& from, Optimizer& to) {
  struct Fill final : StateVisitor {
    void tensor(const StateEntry& entry) override {
      at::Tensor(entry.tensor).copy_(source.entries.at(entry.name).tensor);
      ++tensors;
    }
    void counter(const std::string& name, std::int64_t& value) override {
      value = source.counters.at(name);
    }
    Collector source;
    std::size_t tensors = 0;
  } fill;
  from.visit(fill.source);
  to.visit(fill);
  ASSERT_EQ(fill.source.entries.size(), fill.tensors);
}

}  // namespace thinwire
