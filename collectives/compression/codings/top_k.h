// The largest values of each block and their places: `topk`.
//
// Keeps at most kept(count) = max(1, round(density count)) of a block's values as they are, ties of
// the rounding away from zero. Which ones
// follows from the bits of |x| as whole numbers, which are in the order of |x|:
//
//   low = 0, high = 1 + the largest bits
//   while high - low > 1
//     mid = low + (high - low) / 2
//     if more than kept have bits >= mid, low = mid, else
//       high = mid, and threshold ends here if 20 n >= 19 kept for the n that have bits >= high
//   keep those with bits >= high; and unless threshold ended early, as long as there is room and
//   low > 0, those with bits == low, in the order of their places.
//
// So `exact` keeps the best approximation by kept(count) values, of equal ones the lower index;
// `threshold` takes a few passes less and keeps at least .95 kept(count), unless so few are not
// zero. Ties fill the room in both, for a block whose values are all equal must send some, too.
// Zeros are never kept.
//
// Contractive: |x - C(x)|^2 <= (1 - kept / count) |x|^2 with the number that was kept.
//
// A payload makes no sense if its number of values is above kept(count), or if an index is not
// below count or not above the one before: it decodes to NaN everywhere, as do NaN and infinities
// in the block (their number is 0xffffffff, the rest zero bits).
//
// Payload: the number of kept values (uint32), room for kept(count) values (T) in the order of
// their places, and room for as many places in the block of index_bits(count) bits each, the first
// in the lowest bits of the first byte.
#ifndef THINWIRE_CODINGS_TOP_K_H
#define THINWIRE_CODINGS_TOP_K_H

#include <algorithm>
#include <cmath>

#include "collectives/compression/kernels/format.h"

namespace thinwire {

enum class Selection : std::uint8_t { threshold, exact };

struct TopK {
  double density = 0.01;      // share of the values that is kept, at least one per block
  std::int64_t block = 4096;  // values that the kept ones are chosen from
  Selection selection = Selection::threshold;

  static constexpr bool keeps_messages = false;
  std::int64_t block_size() const { return block; }
  // The variant is the selection, the entries are the values that may be kept.
  Format format(std::int64_t count) const {
    Format format;
    format.variant = static_cast<std::uint8_t>(selection);
    const std::int64_t share = std::llround(density * static_cast<double>(count));
    format.entries =
        static_cast<std::int32_t>(std::min<std::int64_t>(count, std::max<std::int64_t>(1, share)));
    return format;
  }
  static constexpr Selection selection_of(const Format& format) {
    return static_cast<Selection>(format.variant);
  }
  // Bits that tell the place of one of `count` values.
  static constexpr int index_bits(std::int64_t count) {
    int bits = 1;
    while ((std::int64_t{1} << bits) < count) ++bits;
    return bits;
  }
  template <typename T>
  static constexpr std::int64_t payload_bytes(const Format& format, std::int64_t count) {
    return 4 + format.entries * static_cast<std::int64_t>(sizeof(T)) +
           (format.entries * std::int64_t{index_bits(count)} + 7) / 8;
  }
};

}  // namespace thinwire

#endif

#ifdef THINWIRE_CODING_WORDS
namespace thinwire {

template <>
struct Words<TopK> : WordsByDefault<TopK> {
  static constexpr std::array names = {"topk"};
  static constexpr const char* help = "topk:density=X[,block=N,select=threshold|exact]";
  // Coding the mean of sparse messages again loses most of it, so messages go to all.
  static constexpr auto& ways = every_way_to_all_first;
  static constexpr Word<Selection> selections[] = {{"threshold", Selection::threshold},
                                                   {"exact", Selection::exact}};

  static TopK read(ChoiceReader& spec) {
    TopK top_k;
    top_k.density = spec.number("density", top_k.density, 0, 1);
    top_k.block = spec.integer("block", top_k.block, 32, largest_block);
    top_k.selection = choose(spec, "select", selections);
    return top_k;
  }
  static std::string write(const TopK& top_k) {
    return fmt::format("topk:density={},block={},select={}", top_k.density, top_k.block,
                       word_of(top_k.selection, selections));
  }
  static void check(const TopK& top_k) {
    if (!(top_k.density > 0 && top_k.density <= 1)) {
      throw UsageError(fmt::format(
          "compressor topk: density is {}; give a share above 0, at most 1", top_k.density));
    }
    if (top_k.block < 32 || top_k.block > largest_block) {
      throw UsageError(
          fmt::format("compressor topk: block is {}; give 32 to {}", top_k.block, largest_block));
    }
  }
  static std::string describe(const TopK& top_k) {
    return fmt::format("the largest {:g} % of each {} values{}", 100 * top_k.density, top_k.block,
                       top_k.selection == Selection::exact ? "" : ", by a threshold");
  }
  static std::optional<double> contraction(const TopK& top_k) { return top_k.density; }
  // From twice the density on EControl diverges on quadratics.
  static std::optional<std::string> divergence(const TopK& top_k, const FeedbackOptions& feedback) {
    if (feedback.kind != FeedbackKind::econtrol || !feedback.eta ||
        *feedback.eta <= 2 * top_k.density) {
      return std::nullopt;
    }
    return fmt::format(
        "feedback econtrol: eta is {:g}, more than twice the density {:g} of topk, so training may "
        "diverge; give eta=auto or at most {:g}",
        *feedback.eta, top_k.density, 2 * top_k.density);
  }
  static std::optional<std::string> note(const TopK& top_k, const FeedbackOptions& feedback) {
    if (feedback.kind != FeedbackKind::econtrol || feedback.momentum != 0) return std::nullopt;
    return fmt::format(
        "note: what topk sends rarely econtrol applies in every step in between, noise and all; "
        "--feedback econtrol:eta={:g},momentum=0.9 tracks averages, error_feedback needs none",
        top_k.density);
  }
};

}  // namespace thinwire
#endif

#ifdef THINWIRE_CODING_BODIES
THINWIRE_ROWS_BEGIN

constexpr std::uint32_t no_kept_values = 0xffffffff;  // in place of their number
constexpr int value_width_of_count = 4;

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
    if (passed > format.entries) {
      low = mid;
      continue;
    }
    high = mid;
    above = passed;
    if (TopK::selection_of(format) == Selection::threshold &&
        20 * above >= 19 * std::int64_t{format.entries}) {
      return {high, 0};
    }
  }
  return {high, low > 0 ? format.entries - above : 0};
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

template <typename T, typename Message>
THINWIRE_WHOLE_BODY void encode_top_k(const Task<T>& task, Message message) {
  using Bits = BitsOf<T>;
  const Format& format = task.format;
  Magnitudes<T, Message> magnitudes(message, task.count, format.entries, *task.scratch);
  KeptWriter<T> writer(task.payload, format.entries, TopK::index_bits(task.count));
  Energy<T> energy{task.energy};
  if (magnitudes.largest() >= infinity_bits<T>) {
    writer.close();
    once([&] { store_one(task.payload, no_kept_values); });
    const Row<T> decoded = fill(not_finite<T>);
    rows(task.count, [&](auto row) {
      const Row<T> m = message.recall(row);
      message.keep_unsent(row, m, decoded);
      energy.add(row, m, decoded);
    });
    energy.close();
    return;
  }
  magnitudes.collect();
  Cut<Bits> cut = find_cut<T>(magnitudes, format);
  const Row<Bits> below = fill<Bits>(cut.high - 1);
  const auto keep = [&](auto row) {
    const Row<T> m = message.recall(row);
    const Row<Bits> bits = magnitude_bits(m);
    std::uint32_t word = ballot(less(below, bits), row);
    if (cut.ties > 0) {
      const std::uint32_t ties = lowest_bits(ballot(equal(bits, below), row), cut.ties);
      cut.ties -= count_bits(ties);
      word |= ties;
    }
    writer.append(word, m, row.begin);
    const Row<T> decoded = select(from_ballot<T>(word), m, zeros<T>());
    message.keep_unsent(row, m, decoded);
    energy.add(row, m, decoded);
  };
  if (Message::zero_changes_nothing && task.energy == nullptr) {
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
        room(format.entries),
        width(TopK::index_bits(count)),
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

// use(row, mean) for every row, from what `ranks` ranks kept.
template <typename T, typename Use>
THINWIRE_BODY void each_mean_of_kept(const Block& block, const char* payload, std::int64_t stride,
                                     std::int32_t ranks, Use use) {
  const auto reader = [&](std::int32_t rank) {
    return KeptReader<T>(payload + rank * stride, block.format, block.count);
  };
  bool sense = true;
  for (std::int32_t rank = 0; rank < ranks && sense; ++rank) {
    sense = reader(rank).makes_sense(block.count);
  }
  if (!sense) {
    rows(block.count, [&](auto row) { use(row, fill(not_finite<T>)); });
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
      use(moved(row, begin), mean);
    });
    meet();
  }
}

template <>
struct Bodies<TopK> {
  template <typename T, typename Message>
  THINWIRE_BODY static void encode(const Task<T>& task, const Message& message) {
    encode_top_k(task, message);
  }
  template <typename T, typename Use>
  THINWIRE_BODY static void each_mean(const Block& block, const char* payload, std::int64_t stride,
                                      std::int32_t ranks, Use use) {
    each_mean_of_kept<T>(block, payload, stride, ranks, use);
  }
  template <typename T>
  THINWIRE_BODY static bool within(const Block& block, const char* payload, T limit) {
    const KeptReader<T> reader(payload, block.format, block.count);
    return reader.makes_sense(block.count) && all_entries(reader.kept, [&](std::int64_t k) {
             return is_within(reader.value(k), limit);
           });
  }
};

THINWIRE_ROWS_END
#endif
