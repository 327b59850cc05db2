// Slices that rest as a whole, for tests that look at them one by one.
#pragma once

#include "collectives/bucket.h"

namespace thinwire::resting {

inline std::size_t index_of(const Bucket& bucket, const Slice& slice) {
  return static_cast<std::size_t>(&slice - bucket.slices.data());
}

inline bool is_frozen(const Bucket& bucket, const Slice& slice) {
  return bucket.layout.of(index_of(bucket, slice)).frozen;
}

inline bool rests(const Bucket& bucket, const Slice& slice) {
  return bucket.rests(index_of(bucket, slice));
}

// The bucket has another layout only where something changes.
inline void set_frozen(Bucket& bucket, std::size_t slice, bool frozen) {
  SliceLayout part = bucket.layout.of(slice);
  if (part.frozen == frozen) return;
  part.frozen = frozen;
  bucket.layout = bucket.layout.with(bucket.slices, slice, part);
}

}  // namespace thinwire::resting
