// The unit that is reduced and stepped.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "collectives/layout.h"

namespace thinwire {

struct UndecodedEstimate;

// One parameter's place in a bucket.
struct Slice {
  std::string name;                 // the parameter's full name, e.g. "conv1.weight"
  std::vector<std::int64_t> shape;  // the parameter's shape
  std::int64_t offset = 0;          // elements from the bucket's start
  std::int64_t numel = 0;
  // No rank had a gradient of it in the step that is being committed: it is in no update, and its
  // residuals are as before the step. Known only from settle on, when its bytes have been sent.
  bool absent = false;

  std::int64_t end() const { return offset + numel; }
  // Matrices and convolution kernels are compressed, vectors and scalars ride along uncompressed.
  bool is_vector() const { return shape.size() < 2; }
};

// Plain data: a flat gradient buffer, flat weights, and the slices that both hold. Gaps between
// slices (alignment padding) are zero and belong to nobody. All tensors are 1-D, contiguous, of one
// dtype (a bucket of 16-bit parameters has a 32-bit gradient) and one device.
struct Bucket {
  int index = 0;        // position in the order of reduction, the same on all ranks
  at::Tensor weights;   // undefined where the weights belong to somebody else (attach)
  at::Tensor gradient;  // a reducer may exchange its storage at commit
  std::vector<Slice> slices;
  // What of the slices is live and how it is coded; changes between steps, alike on all ranks.
  Layout layout;
  // If set, the group's estimate is this, and what is in the buffer means nothing.
  std::shared_ptr<const UndecodedEstimate> undecoded;

  std::int64_t numel() const { return gradient.numel(); }
  // Whether an update leaves a slice alone.
  bool rests(std::size_t slice) const { return layout.rests(slice) || slices[slice].absent; }
  // Elements that belong to parameters.
  std::int64_t parameter_numel() const {
    std::int64_t sum = 0;
    for (const auto& slice : slices) sum += slice.numel;
    return sum;
  }
};

// The live elements of a slice, from its start.
inline std::vector<Range> live_ranges(const Bucket& bucket, std::size_t slice) {
  if (bucket.layout.rests(slice)) return {};
  return bucket.layout.of(slice).live.ranges(bucket.slices[slice].numel);
}

}  // namespace thinwire
