#include "runtime/step/layout_state.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/text.h"

namespace thinwire {
namespace {

// What is live of a slice, as a counter.
constexpr std::int64_t kAll = 0;
constexpr std::int64_t kSome = 1;
constexpr std::int64_t kNone = 2;

std::string counter_name(const Slice& slice, const char* what) {
  return fmt::format("layout/{}/{}", slice.name, what);
}

at::Tensor bitmap_of(std::int64_t numel) {
  return at::empty({(numel + 7) / 8}, at::kByte);
}

std::int64_t liveness_of(const SliceLayout& part, std::int64_t numel) {
  const std::int64_t live = part.live.count(numel);
  return live == numel ? kAll : live == 0 ? kNone : kSome;
}

// A density as the integer that has its bits: a counter of a checkpoint is an integer.
std::optional<std::int64_t> as_integer(const std::optional<double>& value) {
  if (!value) return std::nullopt;
  return std::bit_cast<std::int64_t>(*value);
}

}  // namespace

void relayout(const std::map<std::string, SliceLayout>& parts, std::vector<Bucket>& buckets,
              StepTransaction& transaction) {
  std::map<std::size_t, Layout> changed;  // by bucket
  std::size_t found = 0;
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    const Bucket& bucket = buckets[b];
    std::vector<SliceLayout> all = parts_of(bucket.layout, bucket.slices.size());
    const std::size_t before = found;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const auto part = parts.find(bucket.slices[i].name);
      if (part == parts.end()) continue;
      const bool frozen = all[i].frozen;
      all[i] = part->second;
      all[i].frozen = frozen;  // a parameter that requires no gradient is, whoever asks
      ++found;
    }
    if (found == before) continue;
    changed.emplace(b, Layout(bucket.slices, std::move(all), bucket.layout.version() + 1));
    transaction.require_possible(b, changed.at(b));
  }
  if (found != parts.size()) {
    for (const auto& [name, part] : parts) {
      const bool known = std::ranges::any_of(buckets, [&](const Bucket& bucket) {
        return std::ranges::any_of(bucket.slices,
                                   [&](const Slice& slice) { return slice.name == name; });
      });
      if (known) continue;
      throw UsageError(fmt::format(
          "there is no parameter '{}' to give a layout; use a name of those that are trained",
          printable(name)));
    }
  }
  for (const auto& [b, layout] : changed) transaction.relayout(b, layout);
}

std::map<std::string, SliceLayout> parts_by_name(const std::vector<Bucket>& buckets) {
  std::map<std::string, SliceLayout> parts;
  for (const Bucket& bucket : buckets) {
    for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
      if (bucket.layout.hash(i) != 0) parts[bucket.slices[i].name] = bucket.layout.of(i);
    }
  }
  return parts;
}

void LayoutState::visit(const std::vector<Bucket>& buckets, StateVisitor& visitor) {
  for (const Bucket& bucket : buckets) {
    for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
      const Slice& slice = bucket.slices[i];
      const SliceLayout& part = bucket.layout.of(i);
      const auto waits = bitmaps_.find(slice.name);
      std::int64_t live = waits != bitmaps_.end() ? kSome : liveness_of(part, slice.numel);
      if (live == kAll && part.coding.is_default()) continue;
      visitor.counter(counter_name(slice, "live"), live);
      const auto show = [&](const char* what, const std::optional<std::int64_t>& value) {
        if (std::int64_t shown = value.value_or(0); value) {
          visitor.counter(counter_name(slice, what), shown);
        }
      };
      show("gone", part.inactive == Inactive::gone ? std::optional<std::int64_t>(1) : std::nullopt);
      show("bits", part.coding.bits);
      show("block", part.coding.block);
      show("density", as_integer(part.coding.density));
      show("rank", part.coding.rank);
      if (live != kSome) continue;
      at::Tensor bitmap;
      if (waits != bitmaps_.end()) {
        bitmap = waits->second;
      } else {
        bitmap = bitmap_of(slice.numel);
        const auto bytes = part.live.bitmap(slice.numel);
        std::memcpy(bitmap.data_ptr(), bytes.data(), bytes.size());
      }
      visitor.tensor(
          {.name = "layout/" + slice.name, .kind = StateKind::replicated, .tensor = bitmap});
    }
  }
}

void LayoutState::begin_to_load(const std::map<std::string, std::int64_t>& counters,
                                std::vector<Bucket>& buckets, StepTransaction& transaction) {
  bitmaps_.clear();
  before_.clear();
  for (const Bucket& bucket : buckets) before_.push_back(bucket.layout);
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    const Bucket& bucket = buckets[b];
    std::vector<SliceLayout> parts(bucket.slices.size());
    bool changes = !bucket.layout.is(Layout());
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const Slice& slice = bucket.slices[i];
      const auto find = [&](const char* what) -> std::optional<std::int64_t> {
        const auto found = counters.find(counter_name(slice, what));
        if (found == counters.end()) return std::nullopt;
        return found->second;
      };
      parts[i].frozen = bucket.layout.of(i).frozen;
      const auto live = find("live");
      if (!live) continue;
      changes = true;
      if (find("gone")) parts[i].inactive = Inactive::gone;
      parts[i].coding = {.bits = find("bits"), .block = find("block"), .rank = find("rank")};
      if (const auto density = find("density")) {
        parts[i].coding.density = std::bit_cast<double>(*density);
      }
      if (*live == kNone) parts[i].live = Liveness::none();
      if (*live != kSome || slice.numel < 2) continue;
      bitmaps_[slice.name] = bitmap_of(slice.numel);
      parts[i].live = Liveness::of_ranges({{0, 1}});  // until the bitmap is there
    }
    if (!changes) continue;
    try {
      transaction.relayout(b, Layout(bucket.slices, std::move(parts), bucket.layout.version() + 1));
    } catch (const UsageError& error) {
      throw DataError(fmt::format(
          "the checkpoint's layout does not fit: {}; resume with the configuration that saved it",
          error.what()));
    }
  }
}

void LayoutState::load_failed(std::vector<Bucket>& buckets, StepTransaction& transaction) {
  bitmaps_.clear();
  const auto before = std::exchange(before_, {});
  for (std::size_t b = 0; b < before.size(); ++b) {
    if (!buckets[b].layout.is(before[b])) transaction.relayout(b, before[b]);
  }
}

void LayoutState::end_of_load(std::vector<Bucket>& buckets, StepTransaction& transaction) {
  before_.clear();
  const auto bitmaps = std::exchange(bitmaps_, {});
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    const Bucket& bucket = buckets[b];
    std::vector<SliceLayout> parts = parts_of(bucket.layout, bucket.slices.size());
    bool changes = false;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const auto found = bitmaps.find(bucket.slices[i].name);
      if (found == bitmaps.end()) continue;
      changes = true;
      const auto* bytes = static_cast<const std::uint8_t*>(found->second.const_data_ptr());
      parts[i].live = Liveness::of_bitmap({bytes, bytes + found->second.numel()});
    }
    if (changes) {
      transaction.relayout(b, Layout(bucket.slices, std::move(parts), bucket.layout.version() + 1));
    }
  }
}

}  // namespace thinwire
