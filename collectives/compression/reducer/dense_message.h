// What of a bucket is summed over ranks when it goes uncompressed.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "collectives/bucket.h"
#include "collectives/compression/feedback/feedback.h"
#include "collectives/queue.h"

namespace thinwire {

// The gradient without frozen slices: in its own place where that is one run of elements, else
// packed beside it.
class DenseMessage {
 public:
  // What is to be summed in place; of no elements where all is frozen. Fills frozen slices of the
  // gradient with zeros.
  at::Tensor pack(const Bucket& bucket, Queue& queue);
  // Brings the sums to the gradient.
  void unpack(const Bucket& bucket, Queue& queue);

 private:
  std::vector<Range> runs_;
  at::Tensor packed_;  // more than one run
};

}  // namespace thinwire
