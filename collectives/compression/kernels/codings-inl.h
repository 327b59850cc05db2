// The codings of format.h over rows of 32 lanes: one block's message becomes a payload, and the
// other way round. The order of operations is that of the plain codecs. Included once per target,
// as bodies-inl.h is.
#if defined(THINWIRE_CODINGS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_CODINGS_INL_H
#undef THINWIRE_CODINGS_INL_H
#else
#define THINWIRE_CODINGS_INL_H
#endif

#include "collectives/compression/kernels/messages-inl.h"

THINWIRE_ROWS_BEGIN

// A device may use constants, but not call the host's functions that make them.
template <typename T>
constexpr T smallest_normal = std::numeric_limits<T>::min();
template <typename T>
constexpr T infinity = std::numeric_limits<T>::infinity();
template <typename T>
constexpr T not_finite = std::numeric_limits<T>::quiet_NaN();
template <typename T>
constexpr BitsOf<T> infinity_bits = static_cast<BitsOf<T>>(sizeof(T) == 4 ? 0x7f800000
                                                                          : 0x7ff0000000000000);
constexpr std::uint32_t no_kept_values = 0xffffffff;  // in place of their number
constexpr int value_width_of_count = 4;

template <typename T>
THINWIRE_BODY bool finite(T x) {
  return x - x == 0;
}
template <typename T>
THINWIRE_BODY Row<BitsOf<T>> magnitude_bits(const Row<T>& a) {
  return bits_of(magnitude(a));
}

// Sums of m^2 and of (m - d)^2, for who wants them.
template <typename T>
struct Energy {
  T* to;
  Row<T> message = zeros<T>();
  Row<T> left = zeros<T>();
  template <typename Place>
  THINWIRE_BODY void add(Place row, const Row<T>& m, const Row<T>& decoded) {
    if (to == nullptr) return;
    message = message + m * m;
    const Row<T> rest = there(row, m - decoded, zeros<T>());
    left = left + rest * rest;
  }
  THINWIRE_BODY void close() {
    if (to == nullptr) return;
    const T sum = sum_of_lanes(message);
    const T rest = sum_of_lanes(left);
    once([&] {
      to[0] = sum;
      to[1] = rest;
    });
  }
};

// What a block's coding needs beside its values.
template <typename T>
struct Task {
  Format format;
  std::int64_t count;
  char* payload;
  std::uint64_t rounding_key;
  std::int64_t draws_begin;  // of the block in its bucket
  T* energy;
  Scratch* scratch;
};

// ---- raw ----

template <typename T, typename Feedback>
THINWIRE_WHOLE_BODY void code_raw(const Task<T>& task, Feedback feedback) {
  Messages<T, Feedback> messages(feedback, task.count);
  messages.only([&](auto row, const Row<T>& m) {
    store_packed(task.payload, row, m);
    feedback.absorb(row, m, m);
  });
  if (task.energy != nullptr) {
    once([&] { task.energy[0] = task.energy[1] = 0; });
  }
}

// ---- sign ----

template <SignScale kind, typename T>
THINWIRE_BODY Row<T> share_of_scale(const Row<T>& m) {
  if constexpr (kind == SignScale::l1) {
    return magnitude(m);
  } else {
    return m * m;
  }
}

template <SignScale kind, typename T>
THINWIRE_BODY T scale_of(const Row<T>& shares, std::int64_t count) {
  T scale = sum_of_lanes(shares) / static_cast<T>(count);
  if constexpr (kind == SignScale::rms) scale = square_root(scale);
  if (!finite(scale)) return not_finite<T>;
  return scale < smallest_normal<T> ? 0 : scale;
}

template <SignScale kind, typename T>
THINWIRE_WHOLE_BODY void code_sign(const Task<T>& task, KeptMessages<T> feedback) {
  Messages<T, KeptMessages<T>> messages(feedback, task.count);
  Row<T> shares = zeros<T>();
  BitsWriter bits(task.payload + sizeof(T));
  messages.first([&](auto row, const Row<T>& m) {
    shares = shares + share_of_scale<kind>(m);
    bits.append(row, ~ballot(less(m, zeros<T>()), row) & lanes_there(row));
  });
  const T scale = scale_of<kind>(shares, task.count);
  once([&] {
    store_one(task.payload, scale);
    *feedback.sent_next = scale;
  });
}

template <SignScale kind, typename T, typename Feedback>
THINWIRE_WHOLE_BODY void code_sign(const Task<T>& task, Feedback feedback) {
  Messages<T, Feedback> messages(feedback, task.count);
  Row<T> shares = zeros<T>();
  messages.first([&](auto, const Row<T>& m) { shares = shares + share_of_scale<kind>(m); });
  const T scale = scale_of<kind>(shares, task.count);
  once([&] { store_one(task.payload, scale); });
  BitsWriter bits(task.payload + sizeof(T));
  const Row<T> plus = fill<T>(scale);
  const Row<T> minus = fill<T>(-scale);
  Energy<T> energy{task.energy};
  messages.again([&](auto row, const Row<T>& m) {
    const Mask<T> negative = less(m, zeros<T>());
    bits.append(row, ~ballot(negative, row) & lanes_there(row));
    const Row<T> decoded = select(negative, minus, plus);
    feedback.absorb(row, m, decoded);
    energy.add(row, m, decoded);
  });
  energy.close();
}

// ---- quantize ----

// A row's random numbers in [0, 1), or one half.
template <Rounding rounding, typename T>
struct Draws {
  std::uint64_t key;
  std::int64_t begin;
  Row<std::uint32_t> words[4];
  template <typename Place>
  THINWIRE_BODY Row<T> next(Place row) {
    if constexpr (rounding == Rounding::nearest) {
      return fill<T>(static_cast<T>(0.5));
    } else {
      const std::int64_t place = row.begin / row_lanes;
      if (place % 4 == 0) draw(begin + place / 4 * row_lanes);
      const Row<std::int32_t> upper = as_signed(shift_right<8>(words[place % 4]));
      return from_int<T>(upper) * fill<T>(static_cast<T>(0x1p-24));
    }
  }

 private:
  // philox(key, 0, first + lane), as collectives/base/philox.h has it for one counter.
  THINWIRE_BODY void draw(std::int64_t first) {
    const auto counter = static_cast<std::uint64_t>(first);
    const auto low = fill(static_cast<std::uint32_t>(counter));
    const Row<std::uint32_t> ones = fill<std::uint32_t>(1);
    Row<std::uint32_t> c0 = low + lane_numbers();
    const Row<std::uint32_t> next = fill(static_cast<std::uint32_t>(counter >> 32));
    Row<std::uint32_t> c1 = select(less(c0, low), next + ones, next);
    Row<std::uint32_t> c2 = zeros<std::uint32_t>();
    Row<std::uint32_t> c3 = zeros<std::uint32_t>();
    auto k0 = static_cast<std::uint32_t>(key);
    auto k1 = static_cast<std::uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
      Row<std::uint32_t> upper0;
      Row<std::uint32_t> upper1;
      const Row<std::uint32_t> lower0 = multiply(c0, 0xD2511F53, upper0);
      const Row<std::uint32_t> lower1 = multiply(c2, 0xCD9E8D57, upper1);
      c0 = upper1 ^ c1 ^ fill(k0);
      c2 = upper0 ^ c3 ^ fill(k1);
      c1 = lower1;
      c3 = lower0;
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
  }
};

// The values that levels stand for: max_min has a least value and no bias, symmetric the reverse.
template <Grid grid, typename T>
struct Levels {
  T least;
  T unit;
  T bias;
  T top;
  THINWIRE_BODY explicit Levels(int bits)
      : least(0),
        unit(0),
        bias(static_cast<T>((1 << (bits - 1)) - 1)),
        top(grid == Grid::max_min ? static_cast<T>((1 << bits) - 1) : 2 * bias) {}
  THINWIRE_BODY Row<T> value(const Row<T>& level) const {
    if constexpr (grid == Grid::max_min) {
      return fill(least) + fill(unit) * level;
    } else {
      return fill(unit) * (level - fill(bias));
    }
  }
  THINWIRE_BODY T largest() const {
    if constexpr (grid == Grid::max_min) {
      return least + unit * top;
    } else {
      return unit * (top - bias);
    }
  }
  // Before the levels in a payload.
  static constexpr std::int64_t bytes = (grid == Grid::max_min ? 2 : 1) * sizeof(T);
  THINWIRE_BODY void write(char* payload) const {
    if constexpr (grid == Grid::max_min) {
      store_one(payload, least);
      store_one(payload + sizeof(T), unit);
    } else {
      store_one(payload, unit);
    }
  }
  THINWIRE_BODY void read(const char* payload) {
    if constexpr (grid == Grid::max_min) {
      least = load_one<T>(payload);
      unit = load_one<T>(payload + sizeof(T));
    } else {
      unit = load_one<T>(payload);
    }
  }
};

template <Grid grid, Rounding rounding, typename T, typename Feedback>
THINWIRE_WHOLE_BODY void code_quantize(const Task<T>& task, Feedback feedback) {
  const int bits = task.format.bits;
  // x - x is zero for finite x and NaN otherwise.
  Row<T> unfinite = zeros<T>();
  Row<T> least = fill<T>(grid == Grid::max_min ? infinity<T> : 0);
  Row<T> largest = fill<T>(grid == Grid::max_min ? -infinity<T> : 0);
  Messages<T, Feedback> messages(feedback, task.count);
  messages.first([&](auto row, const Row<T>& m) {
    unfinite = unfinite + (m - m);
    if constexpr (grid == Grid::max_min) {
      least = least_of(least, there(row, m, least));
      largest = largest_of(largest, there(row, m, largest));
    } else {
      largest = largest_of(largest, magnitude(m));
    }
  });
  Levels<grid, T> levels(bits);
  // + 0: -0 becomes +0.
  if constexpr (grid == Grid::max_min) {
    levels.least = least_lane(least) + 0;
    levels.unit = ((largest_lane(largest) + 0) - levels.least) / levels.top;
  } else {
    levels.unit = largest_lane(largest) / levels.bias;
  }
  T inverse = 0;
  if (!finite(sum_of_lanes(unfinite)) || !finite(levels.unit) || !finite(levels.largest())) {
    levels.unit = not_finite<T>;
    levels.least = not_finite<T>;
  } else if (levels.unit < smallest_normal<T>) {
    levels.unit = 0;
    if (levels.least < smallest_normal<T> && -levels.least < smallest_normal<T>) levels.least = 0;
  } else {
    inverse = 1 / levels.unit;
  }
  once([&] { levels.write(task.payload); });
  char* const planes = task.payload + Levels<grid, T>::bytes;
  Energy<T> energy{task.energy};
  if (inverse == 0) {
    const Row<T> decoded = levels.value(zeros<T>());
    messages.again([&](auto row, const Row<T>& m) {
      store_planes(planes + row.begin / 8 * bits, row, zeros<T>(), bits);
      feedback.absorb(row, m, decoded);
      energy.add(row, m, decoded);
    });
    energy.close();
    return;
  }
  Draws<rounding, T> draws{task.rounding_key, task.draws_begin, {}};
  messages.again([&](auto row, const Row<T>& m) {
    Row<T> place;
    if constexpr (grid == Grid::max_min) {
      place = (m - fill(levels.least)) * fill(inverse) + draws.next(row);
    } else {
      place = (m * fill(inverse) + fill(levels.bias)) + draws.next(row);
      place = largest_of(place, zeros<T>());
    }
    const Row<T> level = least_of(floor_of(place), fill(levels.top));
    store_planes(planes + row.begin / 8 * bits, row, level, bits);
    const Row<T> decoded = levels.value(level);
    feedback.absorb(row, m, decoded);
    energy.add(row, m, decoded);
  });
  energy.close();
}

// ---- cast ----

// To nearest, ties to even; finite values stay finite, and a NaN has one form.
template <Half half>
THINWIRE_BODY Row<std::int32_t> to_half(const Row<float>& x) {
  using Ints = Row<std::int32_t>;
  const Ints bits = bits_of(x);
  const Ints size = bits & fill<std::int32_t>(0x7fffffff);
  const Ints sign = shift_right<16>(bits) & fill<std::int32_t>(0x8000);
  const Ints one = fill<std::int32_t>(1);
  const auto is_finite = less(size, fill<std::int32_t>(0x7f800000));
  const auto is_nan = less(fill<std::int32_t>(0x7f800000), size);
  Ints rounded;
  Ints above;
  if constexpr (half == Half::bf16) {
    rounded = shift_right<16>(size + fill<std::int32_t>(0x7fff) + (shift_right<16>(size) & one));
    rounded = least_of(rounded, fill<std::int32_t>(0x7f7f));
    above = select(is_nan, fill<std::int32_t>(0x7fc0), sign | fill<std::int32_t>(0x7f80));
  } else {
    rounded = shift_right<13>(size + fill<std::int32_t>(0xfff) + (shift_right<13>(size) & one)) -
              fill<std::int32_t>(112 << 10);
    rounded = least_of(rounded, fill<std::int32_t>(0x7bff));
    // The last place of numbers from 1/2 to 1 is 2^-24, that of fp16's below its normal ones.
    const Ints small = bits_of(value_of_bits<float>(size) + fill(0.5f)) - bits_of(fill(0.5f));
    rounded = select(less(size, fill<std::int32_t>(113 << 23)), small, rounded);
    above = select(is_nan, fill<std::int32_t>(0x7e00), sign | fill<std::int32_t>(0x7c00));
  }
  return select(is_finite, sign | rounded, above);
}

template <Half half>
THINWIRE_BODY Row<float> from_half(const Row<std::int32_t>& bits) {
  using Ints = Row<std::int32_t>;
  if constexpr (half == Half::bf16) {
    return value_of_bits<float>(shift_left<16>(bits));
  } else {
    const Ints sign = shift_left<16>(bits & fill<std::int32_t>(0x8000));
    const Ints size = bits & fill<std::int32_t>(0x7fff);
    const Ints moved_up = shift_left<13>(size);
    const Ints normal = moved_up + fill<std::int32_t>(112 << 23);
    const Ints above = moved_up + fill<std::int32_t>(224 << 23);
    const Ints small = bits_of(from_int<float>(size) * fill(0x1p-24f));
    Ints value = select(less(size, fill<std::int32_t>(0x400)), small, normal);
    value = select(less(size, fill<std::int32_t>(0x7c00)), value, above);
    return value_of_bits<float>(sign | value);
  }
}

// A float of any value; finite ones stay finite.
THINWIRE_BODY Row<float> to_finite_float(const Row<float>& x) {
  return x;
}
THINWIRE_BODY Row<float> to_finite_float(const Row<double>& x) {
  const auto largest = static_cast<double>(std::numeric_limits<float>::max());
  const Row<double> clamped = largest_of(least_of(x, fill(largest)), fill(-largest));
  const auto is_finite = less(magnitude_bits(x), fill(infinity_bits<double>));
  return to_float(select(mask_for<double>(is_finite), clamped, x));
}

template <Half half, typename T, typename Feedback>
THINWIRE_WHOLE_BODY void code_cast(const Task<T>& task, Feedback feedback) {
  Energy<T> energy{task.energy};
  Messages<T, Feedback> messages(feedback, task.count);
  messages.only([&](auto row, const Row<T>& m) {
    const Row<std::int32_t> bits = to_half<half>(to_finite_float(m));
    store_halves(task.payload, row, bits);
    const Row<T> decoded = from_float<T>(from_half<half>(bits));
    feedback.absorb(row, m, decoded);
    energy.add(row, m, decoded);
  });
  energy.close();
}

// ---- top_k ----

// What is kept: all values with bits >= high, and the first `ties` of those with bits high - 1.
template <typename Bits>
struct Cut {
  Bits high;
  std::int64_t ties;
};

template <typename T, typename Magnitudes>
THINWIRE_BODY Cut<BitsOf<T>> find_cut(const Magnitudes& magnitudes, const Format& format) {
  using Bits = BitsOf<T>;
  Bits low = 0;
  Bits high = magnitudes.largest() + 1;
  std::int64_t above = 0;
  while (high - low > 1) {
    const Bits mid = low + (high - low) / 2;
    const std::int64_t passed = magnitudes.passing(mid);
    if (passed > format.kept) {
      low = mid;
      continue;
    }
    high = mid;
    above = passed;
    if (format.selection == Selection::threshold && 20 * above >= 19 * std::int64_t{format.kept}) {
      return {high, 0};
    }
  }
  return {high, low > 0 ? format.kept - above : 0};
}

THINWIRE_BODY std::uint32_t lowest_bits(std::uint32_t word, std::int64_t count) {
  if (count_bits(word) <= count) return word;
  std::uint32_t lowest = 0;
  for (; count > 0; --count) {
    lowest |= word & (0 - word);
    word &= word - 1;
  }
  return lowest;
}

template <typename T, typename Feedback>
THINWIRE_WHOLE_BODY void code_top_k(const Task<T>& task, Feedback feedback) {
  using Bits = BitsOf<T>;
  const Format& format = task.format;
  Magnitudes<T, Feedback> magnitudes(feedback, task.count, format.kept, *task.scratch);
  KeptWriter<T> writer(task.payload, format.kept, index_bits(task.count));
  Energy<T> energy{task.energy};
  if (magnitudes.largest() >= infinity_bits<T>) {
    writer.close();
    once([&] { store_one(task.payload, no_kept_values); });
    const Row<T> decoded = fill(not_finite<T>);
    rows(task.count, [&](auto row) {
      const Row<T> m = feedback.again(row);
      feedback.absorb(row, m, decoded);
      energy.add(row, m, decoded);
    });
    energy.close();
    return;
  }
  magnitudes.collect();
  Cut<Bits> cut = find_cut<T>(magnitudes, format);
  const Row<Bits> below = fill<Bits>(cut.high - 1);
  const auto keep = [&](auto row) {
    const Row<T> m = feedback.again(row);
    const Row<Bits> bits = magnitude_bits(m);
    std::uint32_t word = ballot(less(below, bits), row);
    if (cut.ties > 0) {
      const std::uint32_t ties = lowest_bits(ballot(equal(bits, below), row), cut.ties);
      cut.ties -= count_bits(ties);
      word |= ties;
    }
    writer.append(word, m, row.begin);
    const Row<T> decoded = select(from_ballot<T>(word), m, zeros<T>());
    feedback.absorb(row, m, decoded);
    energy.add(row, m, decoded);
  };
  if (Feedback::message_stays && task.energy == nullptr) {
    magnitudes.visit(keep);
  } else {
    magnitudes.visit_all(keep);
  }
  writer.close();
  energy.close();
}

// One rank's payload of top_k. No byte of it is trusted.
template <typename T>
struct KeptReader {
  const char* payload;
  std::int64_t room;
  std::int64_t width;  // bits per index
  std::int64_t kept;
  THINWIRE_BODY KeptReader(const char* from, const Format& format, std::int64_t count)
      : payload(from),
        room(format.kept),
        width(index_bits(count)),
        kept(load_one<std::uint32_t>(from)) {}
  THINWIRE_BODY T value(std::int64_t k) const {
    return load_one<T>(payload + value_width_of_count + k * static_cast<std::int64_t>(sizeof(T)));
  }
  THINWIRE_BODY std::int64_t index(std::int64_t k) const {
    const std::int64_t first = k * width;
    const char* from =
        payload + value_width_of_count + room * static_cast<std::int64_t>(sizeof(T)) + first / 8;
    const std::int64_t bits = first % 8 + width;
    std::uint64_t word = 0;
    for (std::int64_t byte = 0; 8 * byte < bits; ++byte) {
      word |= std::uint64_t{static_cast<unsigned char>(from[byte])} << (8 * byte);
    }
    return static_cast<std::int64_t>((word >> (first % 8)) & ((std::uint64_t{1} << width) - 1));
  }
  // Whether the numbers can be those of a block of `count` values.
  THINWIRE_BODY bool makes_sense(std::int64_t count) const {
    if (kept > room) return false;
    return all_entries(kept, [&](std::int64_t k) {
      return index(k) < count && (k == 0 || index(k - 1) < index(k));
    });
  }
};

// absorb(row, mean) for every row, from what `ranks` ranks kept.
template <typename T, typename Absorb>
THINWIRE_BODY void each_mean_of_kept(const Block& block, const char* payload, std::int64_t stride,
                                     std::int32_t ranks, Absorb absorb) {
  const auto reader = [&](std::int32_t rank) {
    return KeptReader<T>(payload + rank * stride, block.format, block.count);
  };
  bool sense = true;
  for (std::int32_t rank = 0; rank < ranks && sense; ++rank) {
    sense = reader(rank).makes_sense(block.count);
  }
  if (!sense) {
    rows(block.count, [&](auto row) { absorb(row, fill(not_finite<T>)); });
    return;
  }
  Tile<T> tile;
  for (std::int64_t begin = 0; begin < block.count; begin += Tile<T>::size) {
    const std::int64_t rest = block.count - begin;
    const std::int64_t size = rest < Tile<T>::size ? rest : Tile<T>::size;
    rows(size, [&](auto row) { store(tile.values, row, zeros<T>()); });
    for (std::int32_t rank = 0; rank < ranks; ++rank) {
      meet();
      const KeptReader<T> from = reader(rank);
      entries(from.kept, [&](std::int64_t k) {
        const std::int64_t place = from.index(k) - begin;
        if (place >= 0 && place < size) tile.values[place] += from.value(k);
      });
    }
    meet();
    rows(size, [&](auto row) {
      Row<T> mean = load(tile.values, row);
      if (ranks > 1) mean = mean / fill(static_cast<T>(ranks));
      absorb(moved(row, begin), mean);
    });
    meet();
  }
}

// ---- Reading payloads row by row ----

template <typename T>
struct RawReader {
  const char* values;
  THINWIRE_BODY RawReader(const char* payload, const Format&) : values(payload) {}
  template <typename Place>
  THINWIRE_BODY Row<T> decoded(Place row) const {
    return load_packed<T>(values, row);
  }
};

template <typename T>
struct SignReader {
  T scale;
  const char* bits;
  THINWIRE_BODY SignReader(const char* payload, const Format&)
      : scale(load_one<T>(payload)), bits(payload + sizeof(T)) {}
  template <typename Place>
  THINWIRE_BODY Row<T> decoded(Place row) const {
    const std::uint32_t word = load_bits(bits + row.begin / 8, row);
    return select(from_ballot<T>(word), fill(scale), fill(-scale));
  }
};

template <Grid grid>
struct QuantizeReaderOf {
  template <typename T>
  struct Reader {
    Levels<grid, T> levels;
    int bits;
    const char* planes;
    THINWIRE_BODY Reader(const char* payload, const Format& format)
        : levels(format.bits), bits(format.bits), planes(payload + Levels<grid, T>::bytes) {
      levels.read(payload);
    }
    template <typename Place>
    THINWIRE_BODY Row<T> decoded(Place row) const {
      return levels.value(load_planes<T>(planes + row.begin / 8 * bits, row, bits));
    }
  };
};

template <Half half>
struct CastReaderOf {
  template <typename T>
  struct Reader {
    const char* halves;
    THINWIRE_BODY Reader(const char* payload, const Format&) : halves(payload) {}
    template <typename Place>
    THINWIRE_BODY Row<T> decoded(Place row) const {
      return from_float<T>(from_half<half>(load_halves(halves, row)));
    }
  };
};

// absorb(row, mean) for every row; `payload` is the first rank's of the block.
template <template <typename> class Reader, typename T, typename Absorb>
THINWIRE_BODY void each_mean_of_rows(const Block& block, const char* payload, std::int64_t stride,
                                     std::int32_t ranks, Absorb absorb) {
  // x / 1 is x.
  const Row<T> divisor = fill(static_cast<T>(ranks));
  if constexpr (readers_kept == 2) {
    const Reader<T> first(payload, block.format);
    if (ranks == 1) {
      rows(block.count, [&](auto row) { absorb(row, zeros<T>() + first.decoded(row)); });
      return;
    }
    if (ranks == 2) {
      const Reader<T> second(payload + stride, block.format);
      rows(block.count, [&](auto row) {
        absorb(row, ((zeros<T>() + first.decoded(row)) + second.decoded(row)) / divisor);
      });
      return;
    }
  }
  const std::int64_t summed = rows_of_sums<T>(
      block.count, ranks,
      [&](std::int32_t rank) { return Reader<T>(payload + rank * stride, block.format); },
      [&](auto row, const Row<T>& sum) { absorb(row, ranks == 1 ? sum : sum / divisor); });
  rows(block.count - summed, [&](auto rest) {
    const auto row = moved(rest, summed);
    Row<T> sum = zeros<T>();
    for (std::int32_t rank = 0; rank < ranks; ++rank) {
      sum = sum + Reader<T>(payload + rank * stride, block.format).decoded(row);
    }
    absorb(row, sum / divisor);
  });
}

// Of any coding but held.
template <typename T, typename Absorb>
THINWIRE_BODY void each_mean(const Block& block, const char* payload, std::int64_t stride,
                             std::int32_t ranks, Absorb absorb) {
  const Format& format = block.format;
  switch (format.coding) {
    case Coding::raw:
      return each_mean_of_rows<RawReader, T>(block, payload, stride, ranks, absorb);
    case Coding::sign:
      return each_mean_of_rows<SignReader, T>(block, payload, stride, ranks, absorb);
    case Coding::quantize:
      if (format.grid == Grid::max_min) {
        return each_mean_of_rows<QuantizeReaderOf<Grid::max_min>::template Reader, T>(
            block, payload, stride, ranks, absorb);
      }
      return each_mean_of_rows<QuantizeReaderOf<Grid::symmetric>::template Reader, T>(
          block, payload, stride, ranks, absorb);
    case Coding::cast:
      if (format.half == Half::bf16) {
        return each_mean_of_rows<CastReaderOf<Half::bf16>::template Reader, T>(
            block, payload, stride, ranks, absorb);
      }
      return each_mean_of_rows<CastReaderOf<Half::fp16>::template Reader, T>(block, payload, stride,
                                                                             ranks, absorb);
    case Coding::top_k:
      return each_mean_of_kept<T>(block, payload, stride, ranks, absorb);
    case Coding::held:
      return;
  }
}

THINWIRE_ROWS_END

#endif
