// The vocabulary of the kernels' bodies on the host, beside rows: what one lane does for all, what
// threads have in common, and passes over a block. Included once per target, as host_rows-inl.h is.
#if defined(THINWIRE_HOST_BLOCKS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_HOST_BLOCKS_INL_H
#undef THINWIRE_HOST_BLOCKS_INL_H
#else
#define THINWIRE_HOST_BLOCKS_INL_H
#endif

#include <atomic>
#include <cmath>
#include <cstdint>

#include "collectives/compression/kernels/host_rows-inl.h"

THINWIRE_ROWS_BEGIN

// Calls `body` by one lane, or with the numbers below n by all of them.
template <typename Body>
HWY_INLINE void once(Body body) {
  body();
}
template <typename Body>
HWY_INLINE void entries(std::int64_t n, Body body) {
  for (std::int64_t k = 0; k < n; ++k) body(k);
}
template <typename Body>
HWY_INLINE bool all_entries(std::int64_t n, Body body) {
  for (std::int64_t k = 0; k < n; ++k) {
    if (!body(k)) return false;
  }
  return true;
}
// What one lane wrote others may read afterwards.
HWY_INLINE void meet() {}

// Other threads may lower it at the same time.
inline void lower(std::int32_t* flag, std::int32_t value) {
  const std::atomic_ref<std::int32_t> shared(*flag);
  std::int32_t now = shared.load(std::memory_order_relaxed);
  while (value < now && !shared.compare_exchange_weak(now, value)) {
  }
}
template <typename T>
HWY_INLINE T square_root(T x) {
  return std::sqrt(x);
}

// Writes the bits of a block's rows one behind another.
class BitsWriter {
 public:
  explicit BitsWriter(char* to) : to_(to) {}
  template <typename Place>
  HWY_INLINE void append(Place row, std::uint32_t word) {
    store_bits(to_ + row.begin / 8, row, word);
  }

 private:
  char* to_;
};

// Calls body(row, message) for a block's rows: in one pass, or in a first one and as many more as a
// coding wants.
template <typename T, typename Message>
class Messages {
 public:
  Messages(Message& message, std::int64_t count) : message_(message), count_(count) {}
  template <typename Body>
  HWY_INLINE void in_one_pass(Body body) {
    rows(count_, [&](auto row) { body(row, message_.form(row)); });
  }
  template <typename Body>
  HWY_INLINE void first_pass(Body body) {
    rows(count_, [&](auto row) { body(row, message_.form_for_recall(row)); });
  }
  template <typename Body>
  HWY_INLINE void next_pass(Body body) {
    rows(count_, [&](auto row) { body(row, message_.recall(row)); });
  }

 private:
  Message& message_;
  std::int64_t count_;
};

// Forms sums over ranks, 0 + what reader(0) decodes + ..., for as many elements from the first on
// as is best done here, and calls use(row, sum). Returns how many, a whole number of rows.
template <typename T, typename Reader, typename Use>
HWY_INLINE std::int64_t rows_of_sums(std::int64_t, std::int32_t, Reader, Use) {
  return 0;
}

THINWIRE_ROWS_END

#endif
