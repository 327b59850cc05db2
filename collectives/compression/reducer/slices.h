// What reducers tell of the slices of a bucket.
#pragma once

#include <memory>
#include <vector>

#include "collectives/bucket.h"
#include "collectives/compression/codec/codec.h"
#include "collectives/compression/options.h"
#include "collectives/compression/policy.h"
#include "collectives/compression/reducer/gradient_reducer.h"
#include "collectives/compression/reducer/owners.h"

namespace thinwire {

// Which codec each slice goes through: that of the options, with the numbers that the bucket's
// layout has for the slice, or none where nothing is compressed or `policy` has a reason.
class SliceCodecs {
 public:
  // `options` are resolved.
  explicit SliceCodecs(const CompressionOptions& options);

  bool compresses(const Slice& slice) const {
    return codec_ && !reason_for_dense(slice, options_.policy);
  }
  // One per slice of the bucket, as its own layout is, or another. Throws `UsageError`, naming the
  // slice, for numbers that the codec does not have, or that cannot be.
  CodecOfSlice of(const Bucket& bucket) const { return of(bucket, bucket.layout); }
  CodecOfSlice of(const Bucket& bucket, const Layout& layout) const;
  std::vector<SlicePlan> plan(const Bucket& bucket) const;
  // That of the options; null: nothing is compressed.
  const Codec* codec() const { return codec_.get(); }

 private:
  std::shared_ptr<const Codec> recoded(const Slice& slice, const SliceCoding& coding) const;

  CompressionOptions options_;
  std::shared_ptr<const Codec> codec_;
  std::shared_ptr<const Codec> uncompressed_;
};

}  // namespace thinwire
