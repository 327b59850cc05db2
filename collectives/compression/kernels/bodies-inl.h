// What each kernel does with one block, written once over rows of 32 lanes: host_rows-inl.h makes
// them of vectors, device_rows.h of the threads of a warp. Included once per target.
//
// An element stays with its lane, so that only what lanes hand to each other needs `meet`. The
// codings are in codings/, one file each; tests/reference says in plain code what comes of it.
#if defined(THINWIRE_BODIES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_BODIES_INL_H
#undef THINWIRE_BODIES_INL_H
#else
#define THINWIRE_BODIES_INL_H
#endif

#include "collectives/compression/kernels/coding_bodies-inl.h"
#define THINWIRE_CODING_BODIES
#include "collectives/compression/codings/list.h"
#undef THINWIRE_CODING_BODIES

THINWIRE_ROWS_BEGIN

// Calls body(Bodies<C>()) for the coding C of this number, and nothing for a held block.
template <typename... C, typename Body>
THINWIRE_BODY void with_bodies_of(CodingList<C...>, Coding number, const Body& body) {
  int place = 0;
  (void)((place++ == static_cast<int>(number) ? (body(Bodies<C>()), true) : false) || ...);
}
template <typename Body>
THINWIRE_BODY void with_bodies(Coding number, const Body& body) {
  with_bodies_of(Codings(), number, body);
}

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
  MomentumMessage<T> message{gradient, momentum, args.keep, args.share};
  Messages<T, MomentumMessage<T>> averages(message, block.count);
  averages.in_one_pass([&](auto row, const Row<T>& mean) {
    store(next, row, mean);
    store(gradient, row, mean);
  });
}

// payload := code(m), and gradient := next, by the block's coding.
template <typename T, typename Message>
THINWIRE_BODY void code(const Task<T>& task, const Message& message) {
  with_bodies(task.format.coding, [&](auto bodies) { bodies.encode(task, message); });
}

template <typename C>
THINWIRE_BODY constexpr bool keeps_messages(Bodies<C>) {
  return C::keeps_messages;
}

// The same of error feedback that keeps messages: whether the coding can.
template <typename T>
THINWIRE_BODY bool code_and_keep(const Task<T>& task, const KeptMessage<T>& message) {
  bool done = false;
  with_bodies(task.format.coding, [&](auto bodies) {
    if constexpr (keeps_messages(decltype(bodies)())) {
      bodies.encode(task, message);
      done = true;
    }
  });
  return done;
}

// The residual begins with the block's first element, and `sent_next` is the block's.
template <typename T>
THINWIRE_BODY void code(const Task<T>& task, T* gradient, const Residual<T>& residual,
                        std::int32_t slice, T* sent_next) {
  if (residual.error == nullptr) return code(task, GradientMessage<T>{gradient});
  if (residual.tracker != nullptr) {
    return code(
        task, EControlMessage<T>{gradient, residual.error, residual.tracker, residual.eta[slice]});
  }
  if (residual.sent != nullptr) {
    const KeptMessage<T> kept{gradient, residual.error, *residual.sent, sent_next};
    if (code_and_keep(task, kept)) return;
  }
  code(task, ErrorFeedbackMessage<T>{gradient, residual.error});
}

// The mean of what ranks sent of a block: use(row, mean) for every row, by the block's coding.
template <typename T, typename Use>
THINWIRE_BODY void each_mean(const Block& block, const char* payload, std::int64_t stride,
                             std::int32_t ranks, Use use) {
  with_bodies(block.format.coding, [&](auto bodies) {
    bodies.template each_mean<T>(block, payload, stride, ranks, use);
  });
}

// The residual of block `index`, which begins with element `begin`.
template <typename T>
THINWIRE_BODY Residual<T> residual_of(const Residual<T>& residual, std::int64_t begin,
                                      std::int64_t index) {
  return {residual.error == nullptr ? nullptr : residual.error + begin,
          residual.tracker == nullptr ? nullptr : residual.tracker + begin, residual.eta,
          residual.sent == nullptr ? nullptr : residual.sent + index};
}

// The block's place in a list of one number per block of the table. A coding that keeps no message
// leaves the 0 that is put there.
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

// Whether all that a payload of the block decodes to is within the limit.
template <typename T>
THINWIRE_BODY bool payload_within(const Block& block, const char* payload, T limit) {
  bool within = true;
  with_bodies(block.format.coding,
              [&](auto bodies) { within = bodies.within(block, payload, limit); });
  return within;
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

struct StoreInCache {
  template <typename T, typename Place>
  THINWIRE_BODY void operator()(T* to, Place row, const Row<T>& x) const {
    store(to, row, x);
  }
};

template <typename T, typename Put = StoreInCache>
THINWIRE_BODY void decode(const DecodeArgs<T>& args, const Block& block, Put put = {}) {
  T* into = args.into + block.begin;
  if (block.format.coding == Coding::held) {
    rows(block.count, [&](auto row) { put(into, row, zeros<T>()); });
    return;
  }
  each_mean<T>(block, args.payload + block.payload, args.stride, args.ranks,
               [&](auto row, const Row<T>& mean) { put(into, row, mean); });
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
  GradientMessage<T> sum_of_ranks{gradient};
  Messages<T, GradientMessage<T>> sums(sum_of_ranks, block.count);
  sums.in_one_pass([&](auto row, const Row<T>& sum) {
    unfinite = unfinite + (sum - sum);
    store(gradient, row, sum / ranks);
  });
  if (!finite(sum_of_lanes(unfinite))) lower(args.flag, block.slice);
}

THINWIRE_ROWS_END

#endif
