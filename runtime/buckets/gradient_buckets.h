// Parameters laid out into the flat buckets that are reduced and stepped.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "collectives/bucket.h"
#include "runtime/model/parameters.h"

namespace thinwire {

// Where the weights live.
enum class WeightStorage {
  flattened,  // moved into the buckets: the parameters become views of `Bucket::weights`
  untouched,  // they stay where they are, for somebody else's optimizer
};

struct BucketOptions {
  std::int64_t bucket_bytes = std::int64_t{25} << 20;
  // The bucket that backward fills first is small, so that communication starts early.
  std::int64_t first_bucket_bytes = std::int64_t{1} << 20;
  WeightStorage weights = WeightStorage::flattened;
};

// Lays parameters out backwards into buckets, one dtype each; each parameter's gradient can be made
// an alias of its bucket's gradient buffer. 16-bit parameters get 32-bit gradients, into which
// autograd accumulates. Slices start at multiples of 64 bytes. Parameters are named by their place
// in the list given to the constructor.
class GradientBuckets {
 public:
  // Throws `UsageError` for parameters that are no dense floating-point leaves, for none at all,
  // and for a name or a tensor that is there twice.
  static void require_possible(const std::vector<Parameter>& parameters);
  // Throws as `require_possible` does.
  GradientBuckets(std::vector<Parameter> parameters, BucketOptions options = {});

  struct Place {
    std::size_t bucket;
    std::size_t slice;
  };

  std::vector<Bucket>& buckets() { return buckets_; }
  const std::vector<Bucket>& buckets() const { return buckets_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  Place place(std::size_t parameter) const { return places_[parameter]; }
  const Slice& slice(std::size_t parameter) const;

  // Makes the parameter's grad() an alias of its slot in the current gradient buffer.
  void attach(std::size_t parameter);
  // Whether grad() is that alias now.
  bool attached(std::size_t parameter) const;
  // Makes its grad() undefined.
  void detach(std::size_t parameter);
  void zero(std::size_t parameter);

 private:
  at::Tensor make_alias(std::size_t parameter) const;

  std::vector<Parameter> parameters_;
  std::vector<Place> places_;
  std::vector<Bucket> buckets_;
  // Aliases by the buffer that they point into: a reducer swaps between two or three.
  std::vector<std::map<const void*, at::Tensor>> aliases_;
};

}  // namespace thinwire
