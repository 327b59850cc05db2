// What each kernel does with one block, written once over rows of 32 lanes: host_rows-inl.h makes
// them of vectors, device_rows.h of the threads of a warp. Included once per target.
//
// An element stays with its lane, so that only what lanes hand to each other needs `meet`. format.h
// has the payloads; the order of operations is that of the plain codecs and feedbacks.
#if defined(THINWIRE_BODIES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_BODIES_INL_H
#undef THINWIRE_BODIES_INL_H
#else
#define THINWIRE_BODIES_INL_H
#endif

#include "collectives/compression/kernels/codings-inl.h"

THINWIRE_ROWS_BEGIN

template <typename T>
THINWIRE_BODY void hold(std::int64_t count, T* to, const T* from) {
  rows(count, [&](auto row) { store(to, row, load(from, row)); });
}

template <typename T>
THINWIRE_BODY void average(const AverageArgs<T>& args, const Block& block) {
  const T* momentum = args.momentum + block.begin;
  T* next = args.momentum_next + block.begin;
  if (block.format.coding == Coding::held) return hold(block.count, next, momentum);
  T* gradient = args.gradient + block.begin;
  Averaged<T> averaged{gradient, momentum, args.keep, args.share};
  Messages<T, Averaged<T>> averages(averaged, block.count);
  averages.only([&](auto row, const Row<T>& mean) {
    store(next, row, mean);
    store(gradient, row, mean);
  });
}

// payload := code(m), gradient := next, by the block's coding.
template <typename T, typename Feedback>
THINWIRE_BODY void code(const Task<T>& task, const Feedback& feedback) {
  const Format& format = task.format;
  switch (format.coding) {
    case Coding::raw:
      return code_raw(task, feedback);
    case Coding::sign:
      return format.scale == SignScale::l1 ? code_sign<SignScale::l1>(task, feedback)
                                           : code_sign<SignScale::rms>(task, feedback);
    case Coding::quantize:
      if (format.grid == Grid::max_min) {
        return format.rounding == Rounding::nearest
                   ? code_quantize<Grid::max_min, Rounding::nearest>(task, feedback)
                   : code_quantize<Grid::max_min, Rounding::stochastic>(task, feedback);
      }
      return format.rounding == Rounding::nearest
                 ? code_quantize<Grid::symmetric, Rounding::nearest>(task, feedback)
                 : code_quantize<Grid::symmetric, Rounding::stochastic>(task, feedback);
    case Coding::cast:
      return format.half == Half::bf16 ? code_cast<Half::bf16>(task, feedback)
                                       : code_cast<Half::fp16>(task, feedback);
    case Coding::top_k:
      return code_top_k(task, feedback);
    case Coding::held:
      return;
  }
}

// The residual begins with the block's first element, and `sent_next` is the block's.
template <typename T>
THINWIRE_BODY void code(const Task<T>& task, T* gradient, const Residual<T>& residual,
                        std::int32_t slice, T* sent_next) {
  if (residual.error == nullptr) return code(task, NoFeedback<T>{gradient});
  if (residual.tracker == nullptr) {
    if (residual.sent != nullptr && task.format.coding == Coding::sign) {
      const KeptMessages<T> kept{gradient, residual.error, *residual.sent, sent_next};
      return task.format.scale == SignScale::l1 ? code_sign<SignScale::l1>(task, kept)
                                                : code_sign<SignScale::rms>(task, kept);
    }
    return code(task, ErrorFeedback<T>{gradient, residual.error});
  }
  code(task, Tracked<T>{gradient, residual.error, residual.tracker, residual.eta[slice]});
}

// The residual of block `index`, which begins with element `begin`.
template <typename T>
THINWIRE_BODY Residual<T> residual_of(const Residual<T>& residual, std::int64_t begin,
                                      std::int64_t index) {
  return {residual.error == nullptr ? nullptr : residual.error + begin,
          residual.tracker == nullptr ? nullptr : residual.tracker + begin, residual.eta,
          residual.sent == nullptr ? nullptr : residual.sent + index};
}

// The block's place in a list of one per block of the table; 0 is put there, which codings that
// keep no message leave.
template <typename T>
THINWIRE_BODY T* sent_next_of(T* all, std::int64_t index) {
  if (all == nullptr) return nullptr;
  once([&] { all[index] = 0; });
  return all + index;
}

template <typename T>
THINWIRE_BODY void encode(const EncodeArgs<T>& args, const Block& block, std::int64_t index,
                          Scratch& scratch) {
  T* gradient = args.gradient + block.begin;
  const Residual<T> residual = residual_of(args.residual, block.begin, index);
  T* sent_next = sent_next_of(args.sent_next, index);
  T* energy = args.energy == nullptr ? nullptr : args.energy + 2 * index;
  if (block.format.coding == Coding::held) {
    if (residual.error != nullptr) hold(block.count, gradient, residual.error);
    if (energy != nullptr) {
      once([&] { energy[0] = energy[1] = 0; });
    }
    return;
  }
  code(Task<T>{block.format, block.count, args.payload + block.payload, args.rounding_key,
               block.begin, energy, &scratch},
       gradient, residual, block.slice, sent_next);
}

template <typename T>
THINWIRE_BODY void owner_reduce(const OwnerReduceArgs<T>& args, const Block& block,
                                std::int64_t index, Scratch& scratch) {
  const std::int64_t place = block.begin - args.chunk_begin;
  const std::int64_t payload = block.payload - args.payload_begin;
  const Residual<T> residual = residual_of(args.residual, place, index);
  T* sent_next = sent_next_of(args.sent_next, index);
  T* next = args.owner_next + place;
  const T* tracker = args.mean_tracker == nullptr ? nullptr : args.mean_tracker + place;
  T* tracker_next = args.mean_tracker == nullptr ? nullptr : args.mean_tracker_next + place;
  if (block.format.coding == Coding::held) {
    if (residual.error != nullptr) hold(block.count, next, residual.error);
    if (tracker != nullptr) hold(block.count, tracker_next, tracker);
    return;
  }
  const char* arrived = args.arrived + payload;
  if (tracker == nullptr) {
    each_mean<T>(block, arrived, args.stride, args.ranks,
                 [&](auto row, const Row<T>& mean) { store(next, row, mean); });
  } else {
    each_mean<T>(block, arrived, args.stride, args.ranks, [&](auto row, const Row<T>& mean) {
      const Row<T> tracked = load(tracker, row) + mean;
      store(tracker_next, row, tracked);
      store(next, row, tracked);
    });
  }
  code(Task<T>{block.format, block.count, args.reply + payload, args.rounding_key, block.begin,
               nullptr, &scratch},
       next, residual, block.slice, sent_next);
}

template <typename T>
THINWIRE_BODY void form_error(const FormErrorArgs<T>& args, const Block& block,
                              std::int64_t index) {
  const T sent = args.sent[index];
  if (sent == 0) return;
  T* error = args.error + (block.begin - args.chunk_begin);
  rows(block.count, [&](auto row) { store(error, row, unsent(load(error, row), sent)); });
  meet();
  once([&] { args.sent[index] = 0; });
}

// Not of a NaN.
template <typename T>
THINWIRE_BODY bool within(T x, T limit) {
  return x <= limit && -x <= limit;
}

template <template <typename> class Reader, typename T>
THINWIRE_BODY bool rows_within(const Block& block, const char* payload, T limit) {
  const Reader<T> reader(payload, block.format);
  // Bits, as the larger of a number and a NaN may be the number.
  Row<BitsOf<T>> largest = zeros<BitsOf<T>>();
  rows(block.count,
       [&](auto row) { largest = largest_of(largest, magnitude_bits(reader.decoded(row))); });
  return largest_lane(largest) <= largest_lane(bits_of(fill(limit)));
}

template <Grid grid, typename T>
THINWIRE_BODY bool levels_within(const Block& block, const char* payload, T limit) {
  Levels<grid, T> levels(block.format.bits);
  levels.read(payload);
  return within(levels.least, limit) && within(levels.largest(), limit);
}

// Whether all that a payload of the block decodes to is.
template <typename T>
THINWIRE_BODY bool payload_within(const Block& block, const char* payload, T limit) {
  const Format& format = block.format;
  switch (format.coding) {
    case Coding::raw:
      return rows_within<RawReader>(block, payload, limit);
    case Coding::sign:
      return within(load_one<T>(payload), limit);
    case Coding::quantize:
      return format.grid == Grid::max_min ? levels_within<Grid::max_min>(block, payload, limit)
                                          : levels_within<Grid::symmetric>(block, payload, limit);
    case Coding::cast:
      return format.half == Half::bf16
                 ? rows_within<CastReaderOf<Half::bf16>::template Reader>(block, payload, limit)
                 : rows_within<CastReaderOf<Half::fp16>::template Reader>(block, payload, limit);
    case Coding::top_k: {
      const KeptReader<T> reader(payload, format, block.count);
      return reader.makes_sense(block.count) && all_entries(reader.kept, [&](std::int64_t k) {
               return within(reader.value(k), limit);
             });
    }
    case Coding::held:
      return true;
  }
  return true;
}

template <typename T>
THINWIRE_BODY void first_non_finite(const FirstNonFiniteArgs<T>& args, const Block& block) {
  const T limit = largest_addend<T>(args.ranks);
  bool all = true;
  for (std::int32_t rank = 0; rank < args.ranks; ++rank) {
    all = payload_within(block, args.payload + rank * args.stride + block.payload, limit) && all;
  }
  if (!all) lower(args.flag, block.slice);
}

template <typename T>
THINWIRE_BODY void decode(const DecodeArgs<T>& args, const Block& block) {
  T* into = args.into + block.begin;
  if (block.format.coding == Coding::held) {
    rows(block.count, [&](auto row) { store(into, row, zeros<T>()); });
    return;
  }
  each_mean<T>(block, args.payload + block.payload, args.stride, args.ranks,
               [&](auto row, const Row<T>& mean) { store(into, row, mean); });
}

template <typename T>
THINWIRE_BODY void integrate(const DecodeArgs<T>& args, const Block& block) {
  T* into = args.into + block.begin;
  if (block.format.coding == Coding::held) return;
  each_mean<T>(block, args.payload + block.payload, args.stride, args.ranks,
               [&](auto row, const Row<T>& mean) { store(into, row, load(into, row) + mean); });
}

template <typename T>
THINWIRE_BODY void mean_and_check(const MeanAndCheckArgs<T>& args, const Block& block) {
  T* gradient = args.gradient + block.begin;
  // x / 1 is x.
  const Row<T> ranks = fill(static_cast<T>(args.ranks));
  Row<T> unfinite = zeros<T>();
  NoFeedback<T> nothing{gradient};
  Messages<T, NoFeedback<T>> sums(nothing, block.count);
  sums.only([&](auto row, const Row<T>& sum) {
    unfinite = unfinite + (sum - sum);
    store(gradient, row, sum / ranks);
  });
  if (!finite(sum_of_lanes(unfinite))) lower(args.flag, block.slice);
}

THINWIRE_ROWS_END

#endif
