// What of a bucket is summed over ranks when it goes uncompressed.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "collectives/bucket.h"
#include "collectives/compression/reducer/owners.h"
#include "collectives/queue.h"

namespace thinwire {

// values := 0 in what is not live of each piece, where the live elements come first (LiveOrder).
void clear_inactive(const at::Tensor& values, const std::vector<Chunk>& chunks, Queue& queue);

// The live part of a gradient whose pieces have their live elements first: in its own place where
// that is one run of elements, else packed beside it.
class DenseMessage {
 public:
  // What is to be summed in place; of no elements where nothing is live. Fills the rest of the
  // gradient with zeros.
  at::Tensor pack(const Bucket& bucket, const std::vector<Chunk>& chunks, Queue& queue);
  // Brings the sums to the gradient.
  void unpack(const Bucket& bucket, Queue& queue);

 private:
  std::vector<Range> runs_;
  at::Tensor packed_;  // more than one run
};

}  // namespace thinwire
