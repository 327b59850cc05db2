// The kernels of one kind of vectors, of the bodies that work on a block. Included once per target,
// as bodies-inl.h is.
#if defined(THINWIRE_HOST_KERNELS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_HOST_KERNELS_INL_H
#undef THINWIRE_HOST_KERNELS_INL_H
#else
#define THINWIRE_HOST_KERNELS_INL_H
#endif

#include <string>
#include <vector>

#include "collectives/base/team.h"
#include "collectives/compression/kernels/bodies-inl.h"
#include "collectives/compression/kernels/host.h"
#include "collectives/compression/kernels/kernels.h"

THINWIRE_ROWS_BEGIN

// Blocks that a thread takes at least: some ten microseconds' work in blocks of the usual size.
constexpr std::int64_t least_blocks = 16;

// Calls body(begin, end) with ranges of the table's blocks, on the executor's threads.
template <typename Args, typename Body>
void each_range(const Args& args, const Executor& on, Body body) {
  // Compiled once, for one thread and for several.
  const auto range = [&](std::int64_t begin, std::int64_t end) __attribute__((noinline)) {
    body(begin, end);
  };
  share_out(on.team, args.block_count, least_blocks, range);
}

// A kernel's body for every block of the table. A thread has consecutive ones, and takes them one
// after another: a block stays in the cache.
template <typename Args, typename Body>
void each_block(const Args& args, const Executor& on, Body body) {
  each_range(args, on, [&](std::int64_t begin, std::int64_t end) {
    Scratch scratch;
    for (std::int64_t b = begin; b < end; ++b) {
      if (args.blocks[b].count > 0) body(args.blocks[b], b, scratch);
    }
  });
}

template <typename T>
void run_average(const AverageArgs<T>& args, const Executor& on) {
  each_block(args, on, [&](const Block& block, std::int64_t, Scratch&) { average(args, block); });
}
template <typename T>
void run_encode(const EncodeArgs<T>& args, const Executor& on) {
  each_block(args, on, [&](const Block& block, std::int64_t b, Scratch& scratch) {
    encode(args, block, b, scratch);
  });
}
template <typename T>
void run_owner_reduce(const OwnerReduceArgs<T>& args, const Executor& on) {
  each_block(args, on, [&](const Block& block, std::int64_t b, Scratch& scratch) {
    owner_reduce(args, block, b, scratch);
  });
}
template <typename T>
void run_form_error(const FormErrorArgs<T>& args, const Executor& on) {
  each_block(args, on,
             [&](const Block& block, std::int64_t b, Scratch&) { form_error(args, block, b); });
}
template <typename T>
void run_first_non_finite(const FirstNonFiniteArgs<T>& args, const Executor& on) {
  each_block(args, on,
             [&](const Block& block, std::int64_t, Scratch&) { first_non_finite(args, block); });
}
template <typename T>
void run_decode(const DecodeArgs<T>& args, const Executor& on) {
  each_block(args, on, [&](const Block& block, std::int64_t, Scratch&) { decode(args, block); });
}
template <typename T>
void run_integrate(const DecodeArgs<T>& args, const Executor& on) {
  each_block(args, on, [&](const Block& block, std::int64_t, Scratch&) { integrate(args, block); });
}
template <typename T>
void run_mean_and_check(const MeanAndCheckArgs<T>& args, const Executor& on) {
  each_block(args, on,
             [&](const Block& block, std::int64_t, Scratch&) { mean_and_check(args, block); });
}

struct StorePastCache {
  template <typename T, typename Place>
  HWY_INLINE void operator()(T* to, Place row, const Row<T>& x) const {
    store_past_cache(to, row, x);
  }
};
template <typename T>
void run_decode_past_cache(const DecodeArgs<T>& args, const Executor& on) {
  each_range(args, on, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) {
      if (args.blocks[b].count > 0) decode(args, args.blocks[b], StorePastCache());
    }
    stores_are_done();
  });
}

template <typename T>
Kernels<T> kernels() {
  return {run_average<T>,          run_encode<T>, run_owner_reduce<T>, run_form_error<T>,
          run_first_non_finite<T>, run_decode<T>, run_integrate<T>,    run_mean_and_check<T>};
}

// Both forms of these vectors: what is decoded goes into the cache, or past it.
template <typename T>
void add_forms(const std::string& name, std::vector<NamedKernels<T>>& to) {
  to.push_back({name, kernels<T>()});
  to.push_back({name + "-past-cache", kernels<T>()});
  to.back().kernels.decode = run_decode_past_cache<T>;
}

THINWIRE_ROWS_END

#endif
