// What of a bucket takes part in a step, and how each part of it is coded.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace thinwire {

struct Slice;

// Elements [begin, end).
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t count() const { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

// Which elements of a slice are live, that is, in messages and in updates: all, some ranges, or
// those of a bitmap.
class Liveness {
 public:
  Liveness() = default;  // all
  static Liveness none() { return of_ranges({}); }
  // Rising, not empty, not touching each other; elements from the slice's start.
  static Liveness of_ranges(std::vector<Range> ranges);
  // One bit per element: element i is bit i % 8 of byte i / 8. Bits beyond the slice are ignored.
  static Liveness of_bitmap(std::vector<std::uint8_t> bytes);

  // Throws `UsageError`, which begins with `what`, unless this can be of `numel` elements.
  void require_of(std::int64_t numel, const std::string& what) const;
  // The live elements of a slice of `numel` as ranges, rising, as few as possible.
  std::vector<Range> ranges(std::int64_t numel) const;
  std::int64_t count(std::int64_t numel) const;
  // One bit per element, as `of_bitmap` takes them; the last byte filled up with zeros.
  std::vector<std::uint8_t> bitmap(std::int64_t numel) const;

 private:
  enum class Kind : std::uint8_t { all, ranges, bitmap };
  Kind kind_ = Kind::all;
  std::vector<Range> ranges_;
  std::vector<std::uint8_t> bytes_;
};

// What becomes of the state of elements that are not live.
enum class Inactive : std::uint8_t {
  rests,  // it is held until they are live again
  gone,   // it is dropped: their residual and their optimizer state become zero
};

// The numbers with which one slice is coded; what is not set is as the compressor's options say.
// A number that the coding does not have is an error.
struct SliceCoding {
  std::optional<std::int64_t> bits = {};   // quantize: of a level
  std::optional<std::int64_t> block = {};  // block codings: values that share a scale
  std::optional<double> density = {};      // top_k: share of the values that is kept
  std::optional<std::int64_t> rank = {};   // powersgd: columns of the factors; 0: uncompressed
  bool is_default() const { return !bits && !block && !density && !rank; }
  friend bool operator==(const SliceCoding&, const SliceCoding&) = default;
};

struct SliceLayout {
  Liveness live;
  bool frozen = false;  // for now nothing of it is live, and what `live` names rests
  Inactive inactive = Inactive::rests;
  SliceCoding coding;
};

// What of each slice of a bucket is live and how it is coded. Immutable: to change it between steps
// give the bucket another one, the same on all ranks. Copies are cheap, and share an identity.
class Layout {
 public:
  // All is live, and coded as the compressor's options say.
  Layout() = default;
  // `parts` has one entry per slice. Throws `UsageError`, naming the slice, for a liveness that
  // cannot be of it. `version` counts the layouts that the bucket has had before.
  Layout(const std::vector<Slice>& slices, std::vector<SliceLayout> parts, std::int64_t version);

  std::int64_t version() const { return state_ ? state_->version : 0; }
  const SliceLayout& of(std::size_t slice) const;
  // Whether nothing of the slice is live.
  bool rests(std::size_t slice) const { return state_ && state_->kinds[slice] == Kind::none; }
  // Whether some of it is, and some is not.
  bool is_partial(std::size_t slice) const { return state_ && state_->kinds[slice] == Kind::some; }
  // Whether all slices are coded as the options say, and none is partial.
  bool is_plain() const { return !state_ || state_->is_plain; }
  // Of all that is said of a slice, for ranks to compare. 0: as at the beginning.
  std::uint64_t hash(std::size_t slice) const { return state_ ? state_->hashes[slice] : 0; }
  // Of all slices.
  std::uint64_t hash() const { return state_ ? state_->hash : 0; }
  // The same object, or a copy of it.
  bool is(const Layout& other) const { return state_ == other.state_; }

  // The next layout, with other parts of some slices.
  Layout with(const std::vector<Slice>& slices, std::size_t slice, SliceLayout part) const;

 private:
  enum class Kind : std::uint8_t { all, some, none };
  struct State {
    std::vector<SliceLayout> parts;
    std::vector<Kind> kinds;
    std::vector<std::uint64_t> hashes;
    bool is_plain = true;
    std::int64_t version = 0;
    std::uint64_t hash = 0;
  };
  std::shared_ptr<const State> state_;
};

// The parts of a layout, one per slice, to change some and make the next layout of.
std::vector<SliceLayout> parts_of(const Layout& layout, std::size_t slices);

}  // namespace thinwire
