#include "collectives/compression/reducer/slices.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <variant>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

[[noreturn]] void refuse(const std::string& slice, const char* number) {
  throw UsageError(
      fmt::format("the layout of {} sets its {}, which this compressor does not have; leave it out",
                  slice, number));
}

// `options` with the numbers that `coding` sets.
template <typename Options>
void set_numbers(Options& options, const std::string& slice, const SliceCoding& coding) {
  if (coding.bits) {
    if constexpr (requires { options.bits; }) {
      options.bits =
          static_cast<decltype(options.bits)>(std::clamp<std::int64_t>(*coding.bits, -1, 1 << 10));
    } else {
      refuse(slice, "bits");
    }
  }
  if (coding.block) {
    if constexpr (requires { options.block; }) {
      options.block = *coding.block;
    } else {
      refuse(slice, "block");
    }
  }
  if (coding.density) {
    if constexpr (requires { options.density; }) {
      options.density = *coding.density;
    } else {
      refuse(slice, "density");
    }
  }
  if (coding.rank) refuse(slice, "rank");
}

}  // namespace

SliceCodecs::SliceCodecs(const CompressionOptions& options)
    : options_(options),
      codec_(make_codec(options.codec)),
      uncompressed_(make_uncompressed_codec()) {}

std::shared_ptr<const Codec> SliceCodecs::recoded(const Slice& slice,
                                                  const SliceCoding& coding) const {
  CompressionOptions options = options_;
  std::visit([&](auto& numbers) { set_numbers(numbers, slice.name, coding); }, options.codec);
  try {
    return make_codec(resolve(options).codec);
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("the layout of {}: {}", slice.name, error.what()));
  }
}

CodecOfSlice SliceCodecs::of(const Bucket& bucket, const Layout& layout) const {
  CodecOfSlice codecs;
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    const SliceCoding& coding = layout.of(i).coding;
    if (!compresses(slice)) {
      codecs.push_back(uncompressed_);
    } else {
      codecs.push_back(coding.is_default() ? codec_ : recoded(slice, coding));
    }
  }
  return codecs;
}

std::vector<SlicePlan> SliceCodecs::plan(const Bucket& bucket) const {
  const CodecOfSlice codecs = of(bucket);
  std::vector<SlicePlan> plans;
  for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
    const Slice& slice = bucket.slices[i];
    SlicePlan entry;
    entry.name = slice.name;
    entry.numel = slice.numel;
    entry.compressed = compresses(slice);
    entry.coding = codecs[i]->describe();
    if (codec_ && !entry.compressed)
      entry.coding += ": " + *reason_for_dense(slice, options_.policy);
    const std::int64_t live =
        bucket.layout.is_partial(i) ? bucket.layout.of(i).live.count(slice.numel) : slice.numel;
    entry.payload_bytes = codecs[i]->payload_bytes(live, bucket.gradient.scalar_type());
    plans.push_back(std::move(entry));
  }
  return plans;
}

}  // namespace thinwire
