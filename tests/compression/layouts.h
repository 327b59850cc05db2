// Layouts for tests: draws, what is live, a change of layout.
#pragma once

#include <ATen/ATen.h>

#include "collectives/base/philox.h"
#include "collectives/bucket.h"
#include "collectives/compression/reducer/make_reducer.h"

namespace thinwire::testing {

// Draws that are the same on every rank.
class Dice {
 public:
  explicit Dice(std::uint64_t key) : draws_(11, PhiloxStream::synthetic_data, key) {}
  std::int64_t below(std::int64_t end) {
    return static_cast<std::int64_t>(draws_.uniform(count_++) * static_cast<double>(end));
  }

 private:
  Philox draws_;
  std::uint64_t count_ = 0;
};

// 1 where an element is live, else 0.
inline at::Tensor live_mask(const Bucket& bucket) {
  at::Tensor mask = at::zeros({bucket.numel()}, at::kDouble);
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    if (bucket.layout.rests(i)) continue;
    for (const Range& live : bucket.layout.of(i).live.ranges(slice.numel)) {
      mask.narrow(0, slice.offset + live.begin, live.count()).fill_(1);
    }
  }
  return mask;
}

inline void set_layout(GradientReducer& reducer, Bucket& bucket, const Layout& layout) {
  reducer.require_possible(bucket, layout);
  bucket.layout = layout;
  reducer.relayout(bucket);
}

}  // namespace thinwire::testing
