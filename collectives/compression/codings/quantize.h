// A few bits per value, on a grid of each block's own: `quantize` (Markov et al., CGX, 2022).
//
// In T, the values' type, with top the highest level:
//
//   max_min    least = min x + 0, unit = ((max x + 0) - least) / T(top), top = 2^bits - 1
//              level = floor(((x - least) * inverse) + r), decoded: least + unit * T(level)
//   symmetric  unit = max|x| / T(m), m = 2^(bits - 1) - 1, top = 2 m; not with 1 bit
//              level = floor(((x * inverse) + T(m)) + r), decoded: unit * (T(level) - T(m))
//
// with inverse = T(1) / unit, level clamped to 0 ... top, and r = 1/2 (nearest) or the draw of
// kernels.h (stochastic). Nearest: |error| <= unit / 2. Stochastic: unbiased, |error| < unit. (Both
// up to the rounding of T.)
//
// Payload: with max_min the least value (T), then the unit (T), then `bits` bits of each level.
//
// A unit below the smallest normal number is 0: all stored levels are 0 then, under symmetric too,
// and a least value whose magnitude is below it becomes +0. A block with a NaN or an infinity, or
// whose unit or whose highest value (least + unit * T(top), unit * T(m)) overflows, has NaN for
// unit and least value, and levels 0. Whether a payload is finite is said by the grid's two ends,
// whatever the levels; a level beyond them, which nothing here writes, is not looked for.
#ifndef THINWIRE_CODINGS_QUANTIZE_H
#define THINWIRE_CODINGS_QUANTIZE_H

#include <optional>

#include "collectives/compression/kernels/format.h"

namespace thinwire {

enum class Grid : std::uint8_t { max_min, symmetric };
enum class Rounding : std::uint8_t { nearest, stochastic };

struct Quantize {
  int bits = 4;              // 1 to 8
  std::int64_t block = 512;  // values per grid, a multiple of 32
  // None: symmetric from 4 bits on, as a grid with a zero leaves gradients that are mostly zeros
  // alone (those of embeddings); max_min below, where a symmetric grid's unused level is a large
  // share.
  std::optional<Grid> grid = std::nullopt;
  Rounding rounding = Rounding::nearest;

  static constexpr bool keeps_messages = false;
  std::int64_t block_size() const { return block; }
  Grid chosen_grid() const { return grid.value_or(bits >= 4 ? Grid::symmetric : Grid::max_min); }
  // The variant's lowest bit is the grid, the next one the rounding.
  Format format(std::int64_t) const {
    Format format;
    format.variant = static_cast<std::uint8_t>(static_cast<int>(chosen_grid()) |
                                               static_cast<int>(rounding) << 1);
    format.bits = static_cast<std::uint8_t>(bits);
    return format;
  }
  static constexpr Grid grid_of(const Format& format) {
    return static_cast<Grid>(format.variant & 1);
  }
  static constexpr Rounding rounding_of(const Format& format) {
    return static_cast<Rounding>(format.variant >> 1);
  }
  template <typename T>
  static constexpr std::int64_t payload_bytes(const Format& format, std::int64_t count) {
    const std::int64_t numbers = grid_of(format) == Grid::max_min ? 2 : 1;
    return numbers * static_cast<std::int64_t>(sizeof(T)) + format.bits * bytes_of_bits(count);
  }
};

}  // namespace thinwire

#endif

#ifdef THINWIRE_CODING_WORDS
namespace thinwire {

template <>
struct Words<Quantize> : WordsByDefault<Quantize> {
  static constexpr std::array names = {"quantize"};
  static constexpr const char* help =
      "quantize:bits=N[,block=N,grid=auto|max_min|symmetric,rounding=nearest|stochastic]";
  static constexpr auto& ways = every_way;
  static constexpr Word<std::optional<Grid>> grids[] = {
      {"auto", std::nullopt}, {"max_min", Grid::max_min}, {"symmetric", Grid::symmetric}};
  static constexpr Word<Rounding> roundings[] = {{"nearest", Rounding::nearest},
                                                 {"stochastic", Rounding::stochastic}};

  static Quantize read(ChoiceReader& spec) {
    Quantize quantize;
    quantize.bits = static_cast<int>(spec.integer("bits", quantize.bits, 1, 8));
    quantize.block = spec.integer("block", quantize.block, 32, largest_block);
    quantize.grid = choose(spec, "grid", grids);
    quantize.rounding = choose(spec, "rounding", roundings);
    return quantize;
  }
  static std::string write(const Quantize& quantize) {
    return fmt::format("quantize:bits={},block={},grid={},rounding={}", quantize.bits,
                       quantize.block, word_of(quantize.grid, grids),
                       word_of(quantize.rounding, roundings));
  }
  static void check(const Quantize& quantize) {
    if (quantize.bits < 1 || quantize.bits > 8) {
      throw UsageError(fmt::format("compressor quantize: bits is {}; give 1 to 8", quantize.bits));
    }
    if (quantize.chosen_grid() == Grid::symmetric && quantize.bits < 2) {
      throw UsageError(
          "compressor quantize: a symmetric grid of 1 bit has one value; give 2 bits or "
          "more, or grid=max_min");
    }
    if (quantize.block < 32 || quantize.block % 32 != 0 || quantize.block > largest_block) {
      throw UsageError(
          fmt::format("compressor quantize: block is {}; give a multiple of 32 from 32 to {}",
                      quantize.block, largest_block));
    }
  }
  // The error of a random bit is larger than the value but for values that are the range's ends,
  // and a feedback sends it again and again.
  static void check_feedback(const Quantize& quantize, const FeedbackOptions& feedback) {
    if (quantize.bits == 1 && quantize.rounding == Rounding::stochastic &&
        feedback.kind != FeedbackKind::none) {
      throw UsageError(fmt::format(
          "compressor quantize: with 1 bit and stochastic rounding the residuals of {} grow "
          "without bound; give 2 bits or more, feedback none, or compressor sign",
          name(feedback.kind)));
    }
  }
  static std::optional<std::string> divergence(const Quantize& quantize,
                                               const FeedbackOptions& feedback) {
    if (quantize.bits != 1 || feedback.kind == FeedbackKind::none) return std::nullopt;
    return fmt::format(
        "compressor quantize: with 1 bit most values' errors are larger than the values, so the "
        "residuals of {} may keep growing; give 2 bits or more, feedback none, or compressor sign",
        name(feedback.kind));
  }
  static std::string describe(const Quantize& quantize) {
    return fmt::format("{} bits per value, {} grid of {} values, {} rounding", quantize.bits,
                       quantize.chosen_grid() == Grid::max_min ? "max-min" : "symmetric",
                       quantize.block, word_of(quantize.rounding, roundings));
  }
  static Loss loss(const Quantize& quantize) {
    return quantize.bits >= 4 ? Loss::some : Loss::most;
  }
};

}  // namespace thinwire
#endif

#ifdef THINWIRE_CODING_BODIES
THINWIRE_ROWS_BEGIN

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

template <Grid grid, Rounding rounding, typename T, typename Message>
THINWIRE_WHOLE_BODY void encode_quantize(const Task<T>& task, Message message) {
  const int bits = task.format.bits;
  // x - x is zero for finite x and NaN otherwise.
  Row<T> unfinite = zeros<T>();
  Row<T> least = fill<T>(grid == Grid::max_min ? infinity<T> : 0);
  Row<T> largest = fill<T>(grid == Grid::max_min ? -infinity<T> : 0);
  Messages<T, Message> messages(message, task.count);
  messages.first_pass([&](auto row, const Row<T>& m) {
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
    messages.next_pass([&](auto row, const Row<T>& m) {
      store_planes(planes + row.begin / 8 * bits, row, zeros<T>(), bits);
      message.keep_unsent(row, m, decoded);
      energy.add(row, m, decoded);
    });
    energy.close();
    return;
  }
  Draws<rounding, T> draws{task.rounding_key, task.draws_begin, {}};
  messages.next_pass([&](auto row, const Row<T>& m) {
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
    message.keep_unsent(row, m, decoded);
    energy.add(row, m, decoded);
  });
  energy.close();
}

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

template <Grid grid, typename T>
THINWIRE_BODY bool levels_within(const Block& block, const char* payload, T limit) {
  Levels<grid, T> levels(block.format.bits);
  levels.read(payload);
  return is_within(levels.least, limit) && is_within(levels.largest(), limit);
}

template <>
struct Bodies<Quantize> {
  template <typename T, typename Message>
  THINWIRE_BODY static void encode(const Task<T>& task, const Message& message) {
    const bool nearest = Quantize::rounding_of(task.format) == Rounding::nearest;
    if (Quantize::grid_of(task.format) == Grid::max_min) {
      return nearest ? encode_quantize<Grid::max_min, Rounding::nearest>(task, message)
                     : encode_quantize<Grid::max_min, Rounding::stochastic>(task, message);
    }
    return nearest ? encode_quantize<Grid::symmetric, Rounding::nearest>(task, message)
                   : encode_quantize<Grid::symmetric, Rounding::stochastic>(task, message);
  }
  template <typename T, typename Use>
  THINWIRE_BODY static void each_mean(const Block& block, const char* payload, std::int64_t stride,
                                      std::int32_t ranks, Use use) {
    if (Quantize::grid_of(block.format) == Grid::max_min) {
      return each_mean_of_rows<QuantizeReaderOf<Grid::max_min>::template Reader, T>(
          block, payload, stride, ranks, use);
    }
    return each_mean_of_rows<QuantizeReaderOf<Grid::symmetric>::template Reader, T>(
        block, payload, stride, ranks, use);
  }
  template <typename T>
  THINWIRE_BODY static bool within(const Block& block, const char* payload, T limit) {
    return Quantize::grid_of(block.format) == Grid::max_min
               ? levels_within<Grid::max_min>(block, payload, limit)
               : levels_within<Grid::symmetric>(block, payload, limit);
  }
};

THINWIRE_ROWS_END
#endif
