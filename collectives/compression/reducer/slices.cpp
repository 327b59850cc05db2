#include "collectives/compression/reducer/slices.h"

namespace thinwire {

std::vector<const Codec*> SliceCodecs::of(const Bucket& bucket) const {
  std::vector<const Codec*> codecs;
  for (const Slice& slice : bucket.slices) codecs.push_back(&of(slice));
  return codecs;
}

std::vector<SlicePlan> SliceCodecs::plan(const Bucket& bucket) const {
  std::vector<SlicePlan> plans;
  for (const Slice& slice : bucket.slices) {
    const Codec& codec = of(slice);
    SlicePlan entry;
    entry.name = slice.name;
    entry.numel = slice.numel;
    entry.compressed = compresses(slice);
    entry.coding = codec.describe();
    if (codec_ && !entry.compressed) entry.coding += ": " + *reason_for_dense(slice, policy_);
    entry.payload_bytes = codec.payload_bytes(slice.numel, bucket.gradient.scalar_type());
    plans.push_back(std::move(entry));
  }
  return plans;
}

}  // namespace thinwire
