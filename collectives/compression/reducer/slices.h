// What reducers tell of the slices of a bucket.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "collectives/bucket.h"
#include "collectives/compression/codec/codec.h"
#include "collectives/compression/codec/identity.h"
#include "collectives/compression/policy.h"
#include "collectives/compression/reducer/gradient_reducer.h"

namespace thinwire {

// Which codec each slice goes through: `codec` (null: nothing is compressed), or the identity where
// `policy` has a reason.
class SliceCodecs {
 public:
  explicit SliceCodecs(std::unique_ptr<Codec> codec, CompressionPolicy policy = {})
      : codec_(std::move(codec)), policy_(std::move(policy)) {}

  const Codec& of(const Slice& slice) const {
    if (codec_ && !reason_for_dense(slice, policy_)) return *codec_;
    return identity_;
  }
  bool compresses(const Slice& slice) const { return &of(slice) != &identity_; }
  // One per slice of the bucket.
  std::vector<const Codec*> of(const Bucket& bucket) const;
  std::vector<SlicePlan> plan(const Bucket& bucket) const;
  // Null: nothing is compressed.
  const Codec* codec() const { return codec_.get(); }

 private:
  std::unique_ptr<Codec> codec_;
  CompressionPolicy policy_;
  IdentityCodec identity_;
};

}  // namespace thinwire
