// The vocabulary of the kernels' bodies (messages-inl.h, codings/, bodies-inl.h) on a GPU: a lane
// is a thread of a warp, a row one value of each. All 32 threads must be there at every call.
// host_rows-inl.h says what the functions do.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "collectives/compression/kernels/kernels.h"

#define THINWIRE_BODY __device__ inline
#define THINWIRE_WHOLE_BODY __device__ __noinline__
#define THINWIRE_ROWS_BEGIN \
  namespace thinwire {      \
  namespace on_device {
#define THINWIRE_ROWS_END \
  }                       \
  }

THINWIRE_ROWS_BEGIN

constexpr int row_lanes = 32;
constexpr int warps_per_group = 8;  // of threads that are launched together
constexpr std::uint32_t all_lanes = 0xffffffff;
constexpr int readers_kept = 0;  // registers are better used for more warps

template <typename T>
using Row = T;
template <typename T>
using Mask = bool;
template <typename T>
using BitsOf = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

__device__ inline int lane() {
  return static_cast<int>(threadIdx.x) % row_lanes;
}
__device__ inline int warp() {
  return static_cast<int>(threadIdx.x) / row_lanes;
}

// `place` among rows that are taken together, constant once loops are unrolled; `last` of them.
struct WholeRow {
  std::int64_t begin;
  int place = 0;
  bool last = true;
  static constexpr int n = row_lanes;
  __device__ bool has_lane() const { return true; }
};
struct LastRow {
  std::int64_t begin;
  int n;
  static constexpr int place = 0;
  static constexpr bool last = true;
  __device__ bool has_lane() const { return lane() < n; }
};

template <typename Body>
__device__ inline void rows(std::int64_t count, Body body) {
  const std::int64_t whole = count - count % row_lanes;
  for (std::int64_t begin = 0; begin < whole; begin += row_lanes) body(WholeRow{begin});
  if (whole < count) body(LastRow{whole, static_cast<int>(count - whole)});
}
__device__ inline WholeRow moved(WholeRow row, std::int64_t by) {
  return {row.begin + by};
}
__device__ inline LastRow moved(LastRow row, std::int64_t by) {
  return {row.begin + by, row.n};
}

// Rows whose loads are made before anything is stored, so that memory has enough to do.
constexpr int together = 8;

// Calls `body(constant)` for the numbers 0 to n - 1, so that arrays which it indexes stay in
// registers.
template <int n, typename Body>
__device__ inline void unrolled(Body body) {
#pragma unroll
  for (int i = 0; i < n; ++i) body(i);
}

// For all rows of `count` elements: make(row) of several, and then use(row, what that made).
template <typename Make, typename Use>
__device__ inline void rows_together(std::int64_t count, Make make, Use use) {
  std::int64_t begin = 0;
  for (; begin + together * row_lanes <= count; begin += together * row_lanes) {
    decltype(make(WholeRow{})) made[together];
    unrolled<together>([&](int i) { made[i] = make(WholeRow{begin + i * row_lanes}); });
    unrolled<together>([&](int i) {
      use(WholeRow{begin + i * row_lanes, i, i == together - 1}, made[i]);
    });
  }
  // Whole rows too, so that less is compiled.
  for (; begin < count; begin += row_lanes) {
    const std::int64_t rest = count - begin;
    const LastRow row{begin, rest < row_lanes ? static_cast<int>(rest) : row_lanes};
    use(row, make(row));
  }
}

template <typename T>
__device__ inline T fill(T value) {
  return value;
}
template <typename T>
__device__ inline T zeros() {
  return 0;
}
__device__ inline std::uint32_t lane_numbers() {
  return static_cast<std::uint32_t>(lane());
}

// Of a payload that came over the wire, which nothing writes; not aligned.
__device__ inline unsigned char load_byte(const char* from) {
  return __ldg(reinterpret_cast<const unsigned char*>(from));
}
template <typename T>
__device__ inline T load_one(const char* from) {
  if (reinterpret_cast<std::uintptr_t>(from) % sizeof(T) == 0) {
    return __ldg(reinterpret_cast<const T*>(from));
  }
  unsigned char bytes[sizeof(T)];
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(T)); ++i) bytes[i] = load_byte(from + i);
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}
template <typename T>
__device__ inline void store_one(char* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}
template <typename T, typename Place>
__device__ inline T load(const T* from, Place row) {
  return row.has_lane() ? from[row.begin + lane()] : T{0};
}
// By one lane, into the second level of the cache.
template <typename T>
__device__ inline void fetch(const T* from, WholeRow row) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from + row.begin));
}
// Through the cache for what nothing writes, so that the compiler may move it before stores.
template <typename T, typename Place>
__device__ inline T load_constant(const T* from, Place row) {
  return row.has_lane() ? __ldg(from + row.begin + lane()) : T{0};
}
template <typename T, typename Place>
__device__ inline void store(T* to, Place row, T x) {
  if (row.has_lane()) to[row.begin + lane()] = x;
}
template <typename T, typename Place>
__device__ inline T load_packed(const char* from, Place row) {
  constexpr auto width = static_cast<std::int64_t>(sizeof(T));
  return row.has_lane() ? load_one<T>(from + (row.begin + lane()) * width) : T{0};
}
template <typename T, typename Place>
__device__ inline void store_packed(char* to, Place row, T x) {
  constexpr auto width = static_cast<std::int64_t>(sizeof(T));
  if (row.has_lane()) store_one(to + (row.begin + lane()) * width, x);
}

template <typename T>
__device__ inline T least_of(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
__device__ inline T largest_of(T a, T b) {
  return a < b ? b : a;
}
__device__ inline float magnitude(float a) {
  return fabsf(a);
}
__device__ inline double magnitude(double a) {
  return fabs(a);
}
__device__ inline float floor_of(float a) {
  return floorf(a);
}
__device__ inline double floor_of(double a) {
  return floor(a);
}
template <int by, typename T>
__device__ inline T shift_left(T a) {
  return static_cast<T>(static_cast<std::make_unsigned_t<T>>(a) << by);
}
template <int by, typename T>
__device__ inline T shift_right(T a) {
  return a >> by;
}
template <typename T>
__device__ inline bool less(T a, T b) {
  return a < b;
}
template <typename T>
__device__ inline bool equal(T a, T b) {
  return a == b;
}
template <typename T>
__device__ inline T select(bool mask, T yes, T no) {
  return mask ? yes : no;
}
template <typename T>
__device__ inline bool mask_for(bool mask) {
  return mask;
}

template <typename Place>
__device__ inline std::uint32_t lanes_there(Place row) {
  return row.n == row_lanes ? all_lanes : (1u << row.n) - 1;
}
template <typename Place>
__device__ inline std::uint32_t ballot(bool mask, Place row) {
  return __ballot_sync(all_lanes, mask && row.has_lane());
}
template <typename T>
__device__ inline bool from_ballot(std::uint32_t word) {
  return (word >> lane() & 1) != 0;
}
template <typename Place, typename T>
__device__ inline T there(Place row, T a, T otherwise) {
  return row.has_lane() ? a : otherwise;
}
__device__ inline int count_bits(std::uint32_t word) {
  return __popc(word);
}

template <typename Place>
__device__ inline std::int64_t plane_bytes(Place row) {
  return (row.n + 7) / 8;
}
template <typename Place>
__device__ inline void store_bits(char* to, Place row, std::uint32_t word) {
  const int byte = lane();
  if (byte < plane_bytes(row)) to[byte] = static_cast<char>(word >> (8 * byte));
}
template <typename Place>
__device__ inline std::uint32_t load_bits(const char* from, Place row) {
  // The lane's own bit; `from_ballot` asks for no other.
  if (!row.has_lane()) return 0;
  return static_cast<std::uint32_t>(load_byte(from + lane() / 8)) << (lane() / 8 * 8);
}
template <typename T, typename Place>
__device__ inline void store_planes(char* to, Place row, T levels, int bits) {
  const int level = static_cast<int>(levels);
  for (int plane = 0; plane < bits; ++plane) {
    store_bits(to + plane * plane_bytes(row), row, ballot((level >> plane & 1) != 0, row));
  }
}
template <typename T, typename Place>
__device__ inline T load_planes(const char* from, Place row, int bits) {
  int level = 0;
  for (int plane = 0; plane < bits; ++plane) {
    const std::uint32_t word = load_bits(from + plane * plane_bytes(row), row);
    level |= static_cast<int>(word >> lane() & 1) << plane;
  }
  return static_cast<T>(level);
}

// Every lane gets the result: a + b and b + a are the same bits.
template <typename T, typename Fold>
__device__ inline T fold_row(T x, Fold fold) {
  for (int width = row_lanes / 2; width > 0; width /= 2) {
    x = fold(x, __shfl_xor_sync(all_lanes, x, width));
  }
  return x;
}
template <typename T>
__device__ inline T sum_of_lanes(T row) {
  return fold_row(row, [](T a, T b) { return a + b; });
}
template <typename T>
__device__ inline T least_lane(T row) {
  return fold_row(row, [](T a, T b) { return b < a ? b : a; });
}
template <typename T>
__device__ inline T largest_lane(T row) {
  return fold_row(row, [](T a, T b) { return a < b ? b : a; });
}

__device__ inline std::int32_t bits_of(float a) {
  return __float_as_int(a);
}
__device__ inline std::int64_t bits_of(double a) {
  return __double_as_longlong(a);
}
template <typename T>
__device__ inline T value_of_bits(BitsOf<T> a) {
  T value;
  std::memcpy(&value, &a, sizeof(T));
  return value;
}
__device__ inline std::int32_t as_signed(std::uint32_t a) {
  return static_cast<std::int32_t>(a);
}
template <typename T>
__device__ inline float to_float(T a) {
  return static_cast<float>(a);
}
template <typename T>
__device__ inline T from_float(float a) {
  return static_cast<T>(a);
}
template <typename T>
__device__ inline T from_int(std::int32_t a) {
  return static_cast<T>(a);
}
__device__ inline std::uint32_t multiply(std::uint32_t a, std::uint32_t b, std::uint32_t& upper) {
  upper = __umulhi(a, b);
  return a * b;
}

template <typename Place>
__device__ inline std::int32_t load_halves(const char* from, Place row) {
  return row.has_lane() ? load_one<std::uint16_t>(from + 2 * (row.begin + lane())) : 0;
}
template <typename Place>
__device__ inline void store_halves(char* to, Place row, std::int32_t x) {
  if (row.has_lane()) {
    store_one(to + 2 * (row.begin + lane()), static_cast<std::uint16_t>(x));
  }
}

template <typename Place>
__device__ inline std::int32_t load_bytes(const char* from, Place row) {
  return row.has_lane() ? load_byte(from + row.begin + lane()) : 0;
}
template <typename Place>
__device__ inline void store_bytes(char* to, Place row, std::int32_t x) {
  if (row.has_lane()) to[row.begin + lane()] = static_cast<char>(x);
}

template <typename Body>
__device__ inline void once(Body body) {
  if (lane() == 0) body();
}
template <typename Body>
__device__ inline void entries(std::int64_t n, Body body) {
  for (std::int64_t k = lane(); k < n; k += row_lanes) body(k);
}
template <typename Body>
__device__ inline bool all_entries(std::int64_t n, Body body) {
  bool all = true;
  for (std::int64_t k = lane(); k < n; k += row_lanes) all = all && body(k);
  return __all_sync(all_lanes, all) != 0;
}
__device__ inline void meet() {
  __syncwarp();
}
__device__ inline void lower(std::int32_t* flag, std::int32_t value) {
  if (lane() == 0) atomicMin(flag, value);
}
__device__ inline float square_root(float x) {
  return sqrtf(x);
}
__device__ inline double square_root(double x) {
  return sqrt(x);
}

// The words of rows that are taken together wait in the lanes, to be written at once.
class BitsWriter {
 public:
  __device__ explicit BitsWriter(char* to) : to_(to) {}
  template <typename Place>
  __device__ void append(Place row, std::uint32_t word) {
    if (lane() == row.place) waiting_ = word;
    if (!row.last) return;
    const std::int64_t bytes = 4 * row.place + plane_bytes(row);
    char* const mine = to_ + 4 * lane();
    if (4 * lane() + 4 <= bytes && reinterpret_cast<std::uintptr_t>(to_) % 4 == 0) {
      *reinterpret_cast<std::uint32_t*>(mine) = waiting_;
    } else {
#pragma unroll
      for (int byte = 0; byte < 4; ++byte) {
        if (4 * lane() + byte < bytes) mine[byte] = static_cast<char>(waiting_ >> (8 * byte));
      }
    }
    to_ += bytes;
  }

 private:
  char* to_;
  std::uint32_t waiting_ = 0;
};

template <typename T, typename Message>
class Messages {
 public:
  __device__ Messages(Message& message, std::int64_t count) : message_(message), count_(count) {}
  template <typename Body>
  __device__ void in_one_pass(Body body) {
    // A row for each lane: all of the block is underway at once. Two passes gain nothing by it.
    for (std::int64_t begin = lane() * row_lanes; begin < count_; begin += row_lanes * row_lanes) {
      message_.prefetch(WholeRow{begin}, 0);
    }
    rows_together(
        count_, [&](auto row) { return message_.form(row); }, body);
  }
  template <typename Body>
  __device__ void first_pass(Body body) {
    rows_together(
        count_, [&](auto row) { return message_.form(row); },
        [&](auto row, T message) {
          message_.store_for_recall(row, message);
          body(row, message);
        });
  }
  template <typename Body>
  __device__ void next_pass(Body body) {
    rows_together(
        count_, [&](auto row) { return message_.recall(row); }, body);
  }

 private:
  Message& message_;
  std::int64_t count_;
};

template <typename T, typename Reader, typename Use>
__device__ inline std::int64_t rows_of_sums(std::int64_t count, std::int32_t ranks, Reader reader,
                                            Use use) {
  std::int64_t begin = 0;
  for (; begin + together * row_lanes <= count; begin += together * row_lanes) {
    T sums[together] = {};
    for (std::int32_t rank = 0; rank < ranks; ++rank) {
      const auto from = reader(rank);
      unrolled<together>(
          [&](int i) { sums[i] = sums[i] + from.decoded(WholeRow{begin + i * row_lanes}); });
    }
    unrolled<together>([&](int i) { use(WholeRow{begin + i * row_lanes}, sums[i]); });
  }
  return begin;
}

THINWIRE_ROWS_END
