#include "collectives/layout.h"

#include <fmt/format.h>

#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/bucket.h"

namespace thinwire {
namespace {

bool has_bit(const std::vector<std::uint8_t>& bytes, std::int64_t i) {
  return (bytes[static_cast<std::size_t>(i / 8)] >> (i % 8) & 1U) != 0;
}

template <typename T>
std::uint64_t add(std::uint64_t hash, const T& value) {
  return hash64(&value, sizeof value, hash);
}

template <typename T>
std::uint64_t add_optional(std::uint64_t hash, const std::optional<T>& value) {
  return add(add(hash, value.has_value()), value.value_or(T{}));
}

std::uint64_t hash_of(const SliceLayout& part, std::int64_t numel) {
  std::uint64_t hash = add(add(1, part.frozen), part.inactive);
  for (const Range& range : part.live.ranges(numel)) hash = add(add(hash, range.begin), range.end);
  hash = add_optional(hash, part.coding.bits);
  hash = add_optional(hash, part.coding.block);
  hash = add_optional(hash, part.coding.density);
  return add_optional(hash, part.coding.rank);
}

}  // namespace

Liveness Liveness::of_ranges(std::vector<Range> ranges) {
  Liveness live;
  live.kind_ = Kind::ranges;
  live.ranges_ = std::move(ranges);
  return live;
}

Liveness Liveness::of_bitmap(std::vector<std::uint8_t> bytes) {
  Liveness live;
  live.kind_ = Kind::bitmap;
  live.bytes_ = std::move(bytes);
  return live;
}

void Liveness::require_of(std::int64_t numel, const std::string& what) const {
  std::int64_t before = -1;
  for (const Range& range : ranges_) {
    if (range.begin <= before || range.end <= range.begin || range.end > numel) {
      throw UsageError(fmt::format(
          "{}: the live range [{}, {}) is not one of {} elements behind {}; give rising ranges "
          "that are not empty and do not touch",
          what, range.begin, range.end, numel, before));
    }
    before = range.end;
  }
  const auto bytes = static_cast<std::size_t>((numel + 7) / 8);
  if (kind_ == Kind::bitmap && bytes_.size() != bytes) {
    throw UsageError(fmt::format("{}: a bitmap of {} bytes for {} elements; give {}", what,
                                 bytes_.size(), numel, bytes));
  }
}

std::vector<Range> Liveness::ranges(std::int64_t numel) const {
  if (kind_ == Kind::ranges) return ranges_;
  if (kind_ == Kind::all) return numel > 0 ? std::vector<Range>{{0, numel}} : std::vector<Range>{};
  std::vector<Range> found;
  for (std::int64_t i = 0; i < numel; ++i) {
    if (!has_bit(bytes_, i)) continue;
    if (found.empty() || found.back().end != i) found.push_back({i, i});
    found.back().end = i + 1;
  }
  return found;
}

std::int64_t Liveness::count(std::int64_t numel) const {
  std::int64_t sum = 0;
  for (const Range& range : ranges(numel)) sum += range.count();
  return sum;
}

std::vector<std::uint8_t> Liveness::bitmap(std::int64_t numel) const {
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>((numel + 7) / 8));
  for (const Range& range : ranges(numel)) {
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      bytes[static_cast<std::size_t>(i / 8)] |= static_cast<std::uint8_t>(1U << (i % 8));
    }
  }
  return bytes;
}

Layout::Layout(const std::vector<Slice>& slices, std::vector<SliceLayout> parts,
               std::int64_t version) {
  check_equal(parts.size(), slices.size(), "one part of a layout per slice");
  auto state = std::make_shared<State>();
  state->version = version;
  for (std::size_t i = 0; i < slices.size(); ++i) {
    const std::int64_t numel = slices[i].numel;
    parts[i].live.require_of(numel, slices[i].name);
    const std::int64_t live = parts[i].live.count(numel);
    const Kind kind = parts[i].frozen || (live == 0 && numel > 0) ? Kind::none
                      : live == numel                             ? Kind::all
                                                                  : Kind::some;
    state->kinds.push_back(kind);
    state->is_plain = state->is_plain && kind != Kind::some && parts[i].coding.is_default();
    const bool is_default = kind == Kind::all && parts[i].coding.is_default();
    state->hashes.push_back(is_default ? 0 : hash_of(parts[i], numel));
    if (!is_default) state->hash = add(add(state->hash, i), state->hashes.back());
  }
  state->parts = std::move(parts);
  state_ = std::move(state);
}

const SliceLayout& Layout::of(std::size_t slice) const {
  static const SliceLayout kDefault;
  return state_ ? state_->parts.at(slice) : kDefault;
}

Layout Layout::with(const std::vector<Slice>& slices, std::size_t slice, SliceLayout part) const {
  std::vector<SliceLayout> parts = parts_of(*this, slices.size());
  parts.at(slice) = std::move(part);
  return {slices, std::move(parts), version() + 1};
}

std::vector<SliceLayout> parts_of(const Layout& layout, std::size_t slices) {
  std::vector<SliceLayout> parts;
  for (std::size_t i = 0; i < slices; ++i) parts.push_back(layout.of(i));
  return parts;
}

}  // namespace thinwire
