#include "optimizers/slice_reductions.h"

#include <cmath>

#include "collectives/base/error.h"
#include "collectives/compression/undecoded.h"

namespace thinwire {
namespace {

// A NaN stays: std::max would drop it.
double larger(double a, double b) {
  return a >= b || std::isnan(a) ? a : b;
}

class Accumulator {
 public:
  Accumulator(const Bucket& bucket, SliceReduction reduction)
      : bucket_(bucket), reduction_(reduction), values_(bucket.slices.size()) {}

  template <typename T>
  void add(std::size_t slice, const T* values, std::int64_t count) {
    double& into = values_[slice];
    for (std::int64_t i = 0; i < count; ++i) {
      const auto value = static_cast<double>(values[i]);
      switch (reduction_) {
        case SliceReduction::squared_norm:
          into += value * value;
          break;
        case SliceReduction::largest:
          into = larger(into, std::abs(value));
          break;
        case SliceReduction::mean:
          into += value;
          break;
      }
    }
  }

  std::vector<double> result() {
    if (reduction_ != SliceReduction::mean) return values_;
    for (std::size_t i = 0; i < values_.size(); ++i) {
      if (bucket_.slices[i].numel > 0) values_[i] /= static_cast<double>(bucket_.slices[i].numel);
    }
    return values_;
  }

 private:
  const Bucket& bucket_;
  SliceReduction reduction_;
  std::vector<double> values_;
};

template <typename T>
void add_flat(const Bucket& bucket, const at::Tensor& flat, Accumulator& sums) {
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    if (!bucket.rests(i)) sums.add(i, flat.const_data_ptr<T>() + slice.offset, slice.numel);
  }
}

template <typename T>
void add_coded(const Bucket& bucket, Accumulator& sums) {
  for_each_tile<T>(bucket, {}, [&](const DecodedTile<T>& tile) {
    sums.add(static_cast<std::size_t>(tile.slice), tile.values, tile.count);
  });
}

}  // namespace

std::vector<double> reduce_flat(const Bucket& bucket, const at::Tensor& flat,
                                SliceReduction reduction) {
  check(flat.is_cpu() && flat.numel() == bucket.numel(), "a tensor like the bucket, on the host");
  Accumulator sums(bucket, reduction);
  if (flat.scalar_type() == at::kDouble) {
    add_flat<double>(bucket, flat, sums);
  } else {
    add_flat<float>(bucket, flat, sums);
  }
  return sums.result();
}

std::vector<double> reduce_estimate(const Bucket& bucket, SliceReduction reduction) {
  if (!bucket.undecoded) return reduce_flat(bucket, bucket.gradient, reduction);
  Accumulator sums(bucket, reduction);
  if (bucket.gradient.scalar_type() == at::kDouble) {
    add_coded<double>(bucket, sums);
  } else {
    add_coded<float>(bucket, sums);
  }
  return sums.result();
}

}  // namespace thinwire
