// Buckets and gradients for the tests of compression.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "collectives/base/philox.h"
#include "collectives/base/state.h"
#include "collectives/bucket.h"

namespace thinwire::testing {

// A bucket whose slices have these shapes and are named "p0", "p1", ...; slices start at multiples
// of 16 elements, so that there are gaps.
inline Bucket make_bucket(const std::vector<std::vector<std::int64_t>>& shapes,
                          at::ScalarType dtype = at::kFloat, int index = 0) {
  Bucket bucket;
  bucket.index = index;
  std::int64_t offset = 0;
  for (const auto& shape : shapes) {
    Slice slice;
    slice.name = "p";
    slice.name += std::to_string(bucket.slices.size());
    slice.shape = shape;
    slice.offset = offset;
    slice.numel = 1;
    for (const auto extent : shape) slice.numel *= extent;
    offset += (slice.numel + 15) / 16 * 16;
    bucket.slices.push_back(slice);
  }
  bucket.gradient = at::zeros({offset}, dtype);
  return bucket;
}

// Matrices, an odd one, a tiny one, vectors, an empty one, a scalar.
inline std::vector<std::vector<std::int64_t>> mixed_shapes() {
  return {{33, 17}, {5}, {1, 1}, {0, 4}, {}, {8, 3, 3, 3}, {70, 40}, {129}};
}

// Values in (-1, 1), different per (step, rank, index), with an offset per rank.
inline at::Tensor random_gradient(const Bucket& bucket, std::int64_t step, int rank) {
  at::Tensor flat = at::zeros({bucket.numel()}, at::kDouble);
  const Philox draws(7, PhiloxStream::synthetic_data, static_cast<std::uint64_t>(step * 64 + rank));
  for (const auto& slice : bucket.slices) {
    for (std::int64_t i = slice.offset; i < slice.end(); ++i) {
      flat.data_ptr<double>()[i] =
          2 * draws.uniform(static_cast<std::uint64_t>(i)) - 1 + 0.1 * (rank - 1);
    }
  }
  return flat.to(bucket.gradient.scalar_type());
}

// Copies of everything a visit shows, by name; ranged entries by name and begin.
class Snapshot final : public StateVisitor {
 public:
  void tensor(const StateEntry& entry) override {
    entries.push_back({entry, entry.tensor.clone()});
  }
  void counter(const std::string& name, std::int64_t& value) override {
    counters.emplace_back(name, value);
  }
  bool operator==(const Snapshot& other) const {
    if (entries.size() != other.entries.size() || counters != other.counters) return false;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const at::Tensor& a = entries[i].second;
      const at::Tensor& b = other.entries[i].second;
      if (entries[i].first.name != other.entries[i].first.name || a.sizes() != b.sizes())
        return false;
      if (a.nbytes() > 0 && std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) != 0) {
        return false;
      }
    }
    return true;
  }

  std::vector<std::pair<StateEntry, at::Tensor>> entries;
  std::vector<std::pair<std::string, std::int64_t>> counters;
};

}  // namespace thinwire::testing
