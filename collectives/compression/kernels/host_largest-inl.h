// The search for a block's largest values on the host, and the payload of those that are kept.
// Included once per target, as host_rows-inl.h is.
#if defined(THINWIRE_HOST_LARGEST_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_HOST_LARGEST_INL_H
#undef THINWIRE_HOST_LARGEST_INL_H
#else
#define THINWIRE_HOST_LARGEST_INL_H
#endif

#include "collectives/compression/kernels/host_blocks-inl.h"

THINWIRE_ROWS_BEGIN

// Some memory for sums of scattered values.
template <typename T>
struct Tile {
  static constexpr std::int64_t size = 4096;
  HWY_ALIGN T values[size];
};

// Memory that the search for a block's largest values takes; it grows with the largest block.
class Scratch {
 public:
  template <typename T>
  HWY_INLINE void reserve(std::int64_t count) {
    if (count > room_) grow<T>(count);
  }
  template <typename Bits>
  Bits* values() {
    return reinterpret_cast<Bits*>(values_.data());
  }
  template <typename Bits>
  Bits* groups() {
    return reinterpret_cast<Bits*>(groups_.data());
  }
  std::int64_t* places() { return places_.data(); }

 private:
  // Rare, so that it is not part of the search's own code.
  template <typename T>
  HWY_NOINLINE void grow(std::int64_t count) {
    room_ = count;
    constexpr std::int64_t width = sizeof(T);
    places_.resize(static_cast<std::size_t>(count / row_lanes + 1));
    values_.resize(static_cast<std::size_t>((count + 3 * row_lanes) * width));
    groups_.resize(values_.size());
  }

  std::int64_t room_ = 0;
  std::vector<std::int64_t> places_;
  std::vector<char> values_;
  std::vector<char> groups_;
};

// How many of `n` numbers are at least `least`; a whole number of rows is there.
template <typename Bits>
HWY_INLINE std::int64_t count_at_least(const Bits* numbers, std::int64_t n, Bits least) {
  const Tag<Bits> d;
  const auto below = hn::Set(d, least - 1);
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < n; i += static_cast<std::int64_t>(part_lanes<Bits>)) {
    count += static_cast<std::int64_t>(hn::CountTrue(d, hn::Gt(hn::LoadU(d, numbers + i), below)));
  }
  return count;
}

// The magnitudes of a block's messages. Few are looked at twice: the (kept + 1)-th largest of the
// maxima of groups is a bound that more than `kept` values reach, and not many more.
template <typename T, typename Message>
class Magnitudes {
 public:
  using Bits = BitsOf<T>;

  // Forms the messages.
  HWY_INLINE Magnitudes(Message& message, std::int64_t count, std::int64_t kept, Scratch& scratch)
      : message_(message), count_(count), kept_(kept), scratch_(scratch) {
    scratch_.reserve<T>(count);
    const std::int64_t period = std::max<std::int64_t>(1, count / (3 * kept));
    Bits* groups = scratch_.groups<Bits>();
    std::int64_t group_count = 0;
    std::int64_t in_group = 0;
    Row<Bits> group = zeros<Bits>();
    rows(count, [&](auto row) {
      group = largest_of(group, bits_of(magnitude(message_.form_for_recall(row))));
      if (++in_group == period) {
        spill(group, groups + group_count);
        group_count += row_lanes;
        in_group = 0;
        group = zeros<Bits>();
      }
    });
    if (in_group > 0) {
      spill(group, groups + group_count);
      group_count += row_lanes;
    }
    Row<Bits> all = zeros<Bits>();
    rows(group_count, [&](auto row) { all = largest_of(all, load(groups, row)); });
    largest_ = largest_lane(all);
    group_count_ = group_count;
  }

  Bits largest() const { return largest_; }

  // Keeps those that may matter, all being finite.
  HWY_INLINE void collect() {
    find_bound();
    Bits* values = scratch_.values<Bits>();
    const Row<Bits> below = fill<Bits>((bound_ > 1 ? bound_ : 1) - 1);
    rows(count_, [&](auto row) {
      // The next block's rows: memory would be idle meanwhile.
      message_.prefetch(row, count_);
      const Row<Bits> bits = bits_of(magnitude(message_.recall(row)));
      const Mask<Bits> mask = less(below, bits);
      if (ballot(mask, row) == 0) return;
      scratch_.places()[places_++] = row.begin;
      each_part<Bits>([&](auto p) {
        const Tag<Bits> d;
        hn::StoreU(hn::Compress(bits.part[p], mask.part[p]), d, values + found_);
        found_ += static_cast<std::int64_t>(hn::CountTrue(d, mask.part[p]));
      });
    });
    spill(zeros<Bits>(), values + found_);
  }

  // How many are at least `least`, or any number above `kept`.
  HWY_INLINE std::int64_t passing(Bits least) const {
    if (least <= bound_) return kept_ + 1;
    return count_at_least(scratch_.values<Bits>(), found_, least);
  }

  // Calls `body` with every row, or with those that have a value which may be kept.
  template <typename Body>
  HWY_INLINE void visit_all(Body body) const {
    rows(count_, body);
  }
  template <typename Body>
  HWY_INLINE void visit(Body body) const {
    for (std::int64_t i = 0; i < places_; ++i) {
      const std::int64_t begin = scratch_.places()[i];
      if (begin + row_lanes <= count_) {
        body(WholeRow{begin});
      } else {
        body(LastRow{begin, static_cast<int>(count_ - begin)});
      }
    }
  }

 private:
  HWY_INLINE void find_bound() {
    const Bits* groups = scratch_.groups<Bits>();
    if (group_count_ <= kept_) return;
    Row<Bits> least = fill(largest_);
    rows(group_count_, [&](auto row) { least = least_of(least, load(groups, row)); });
    bound_ = least_lane(least);
    Bits high = largest_ + 1;
    while (high - bound_ > 1) {
      const Bits mid = bound_ + (high - bound_) / 2;
      const std::int64_t passed = count_at_least(groups, group_count_, mid);
      if (passed <= kept_) {
        high = mid;
        continue;
      }
      bound_ = mid;
      if (passed <= kept_ + kept_ / 4) return;
    }
  }

  Message& message_;
  std::int64_t count_;
  std::int64_t kept_;
  Scratch& scratch_;
  std::int64_t group_count_ = 0;
  Bits largest_ = 0;
  Bits bound_ = 0;  // 0, or more than `kept` are at least this
  std::int64_t found_ = 0;
  std::int64_t places_ = 0;
};

// Appends values and their places to a payload.
template <typename T>
class KeptWriter {
 public:
  KeptWriter(char* payload, std::int64_t room, int width)
      : payload_(payload), room_(room), width_(width), stream_(payload + 4 + room * value_bytes) {}

  // The lanes of `word` from the row that begins at index `begin`.
  HWY_INLINE void append(std::uint32_t word, const Row<T>& values, std::int64_t begin) {
    if (word == 0) return;
    HWY_ALIGN T lanes[row_lanes];
    spill(values, lanes);
    for (; word != 0; word &= word - 1) {
      const int lane = std::countr_zero(word);
      store_one(payload_ + 4 + count_ * value_bytes, lanes[lane]);
      pending_ |= static_cast<std::uint64_t>(begin + lane) << pending_bits_;
      pending_bits_ += width_;
      for (; pending_bits_ >= 8; pending_bits_ -= 8) flush_byte();
      ++count_;
    }
  }

  // Their number, and zeros in what is left of the room.
  HWY_INLINE void close() {
    if (pending_bits_ > 0) flush_byte();
    store_one(payload_, static_cast<std::uint32_t>(count_));
    std::memset(payload_ + 4 + count_ * value_bytes, 0,
                static_cast<std::size_t>((room_ - count_) * value_bytes));
    char* const end = payload_ + 4 + room_ * value_bytes + (room_ * width_ + 7) / 8;
    std::memset(stream_, 0, static_cast<std::size_t>(end - stream_));
  }

 private:
  static constexpr std::int64_t value_bytes = sizeof(T);
  HWY_INLINE void flush_byte() {
    *stream_++ = static_cast<char>(pending_);
    pending_ >>= 8;
  }
  char* payload_;
  std::int64_t room_;
  std::int64_t width_;
  char* stream_;
  std::int64_t count_ = 0;
  std::uint64_t pending_ = 0;
  std::int64_t pending_bits_ = 0;
};

THINWIRE_ROWS_END

#endif
