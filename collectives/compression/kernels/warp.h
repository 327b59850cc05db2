// The vocabulary in which a kernel's body is written once: a row of 32 elements, a lane for each.
// On a GPU a lane is a thread of a warp, on the host one turn of a loop that vectorises. An element
// stays with its lane, so that no body needs a barrier.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define THINWIRE_ON_DEVICE __device__
#else
#define THINWIRE_ON_DEVICE
#endif

namespace thinwire {

constexpr int warp_lanes = 32;

// Payloads are packed, so what is in them is not aligned.
template <typename T>
THINWIRE_ON_DEVICE T load(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <typename T>
THINWIRE_ON_DEVICE void store(char* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

#ifndef __CUDACC__

// The 32 lanes one after another.
struct HostWarp {
  // One value per lane.
  template <typename T>
  struct Lanes {
    alignas(64) T values[warp_lanes];
    T& operator[](int lane) { return values[lane]; }
  };

  // One bit per lane.
  struct Bits {
    std::uint32_t word;
    bool operator[](int lane) const { return (word & masks[lane]) != 0; }
  };

  // Calls `body(begin, n)` for the rows of `count` elements; n is 32 in all but the last.
  template <typename Body>
  static void rows(std::int64_t count, Body body) {
    std::int64_t begin = 0;
    for (; begin + warp_lanes <= count; begin += warp_lanes) body(begin, warp_lanes);
    if (begin < count) body(begin, static_cast<int>(count - begin));
  }

  // Calls `body(lane)` in the first n lanes.
  template <typename Body>
  static void each(int n, Body body) {
    if (n == warp_lanes) {
      for (int lane = 0; lane < warp_lanes; ++lane) body(lane);
    } else {
      for (int lane = 0; lane < n; ++lane) body(lane);
    }
  }

  // Calls `body(lane)` in the first n lanes and gathers its answers; the other lanes' bits are 0.
  template <typename Body>
  static std::uint32_t ballot(int n, Body body) {
    std::uint32_t word = 0;
    each(n, [&](int lane) { word |= body(lane) ? masks[lane] : 0; });
    return word;
  }

  template <typename Body>
  static void once(Body body) {
    body();
  }

  // The sum over lanes, lane += lane + width in halves.
  template <typename T>
  static T fold(Lanes<T>& lanes) {
    for (int width = warp_lanes / 2; width > 0; width /= 2) {
      for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    }
    return lanes[0];
  }

  // n bits, least significant first, in whole bytes.
  static void store_bits(char* to, int n, std::uint32_t word) {
    if (n == warp_lanes) {
      store(to, word);
    } else {
      std::memcpy(to, &word, static_cast<std::size_t>((n + 7) / 8));
    }
  }
  static Bits load_bits(const char* from, int n) {
    if (n == warp_lanes) return {load<std::uint32_t>(from)};
    Bits bits{0};
    std::memcpy(&bits.word, from, static_cast<std::size_t>((n + 7) / 8));
    return bits;
  }

  static void lower(std::int32_t* flag, std::int32_t value) {
    if (value < *flag) *flag = value;
  }

 private:
  // A table rather than shifts, which not every vector unit can do with a count per lane.
  static constexpr std::uint32_t masks[warp_lanes] = {
      1u << 0,  1u << 1,  1u << 2,  1u << 3,  1u << 4,  1u << 5,  1u << 6,  1u << 7,
      1u << 8,  1u << 9,  1u << 10, 1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15,
      1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 20, 1u << 21, 1u << 22, 1u << 23,
      1u << 24, 1u << 25, 1u << 26, 1u << 27, 1u << 28, 1u << 29, 1u << 30, 1u << 31};
};

#else

// The calling thread's part of its warp; all 32 threads must be there.
struct DeviceWarp {
  template <typename T>
  struct Lanes {
    T value;
    __device__ T& operator[](int) { return value; }
  };

  struct Bits {
    bool bit;
    __device__ bool operator[](int) const { return bit; }
  };

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % warp_lanes; }

  template <typename Body>
  __device__ static void rows(std::int64_t count, Body body) {
    const std::int64_t whole = count - count % warp_lanes;
#pragma unroll 4
    for (std::int64_t begin = 0; begin < whole; begin += warp_lanes) body(begin, warp_lanes);
    if (whole < count) body(whole, static_cast<int>(count - whole));
  }

  template <typename Body>
  __device__ static void each(int n, Body body) {
    if (lane() < n) body(lane());
  }

  template <typename Body>
  __device__ static std::uint32_t ballot(int n, Body body) {
    const bool mine = lane() < n && body(lane());
    return __ballot_sync(0xffffffffu, mine);
  }

  template <typename Body>
  __device__ static void once(Body body) {
    if (lane() == 0) body();
  }

  // Every lane gets the sum: a + b and b + a are the same bits.
  template <typename T>
  __device__ static T fold(Lanes<T>& lanes) {
    T sum = lanes.value;
    for (int width = warp_lanes / 2; width > 0; width /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, width);
    }
    return sum;
  }

  __device__ static void store_bits(char* to, int n, std::uint32_t word) {
    const int byte = lane();
    if (byte < (n + 7) / 8) to[byte] = static_cast<char>(word >> (8 * byte));
  }
  __device__ static Bits load_bits(const char* from, int n) {
    if (lane() >= n) return {false};
    return {((static_cast<unsigned char>(from[lane() / 8]) >> (lane() % 8)) & 1) != 0};
  }

  __device__ static void lower(std::int32_t* flag, std::int32_t value) {
    if (lane() == 0) atomicMin(flag, value);
  }
};

#endif

namespace bodies {

// The sum of term(i) over `count` elements.
template <typename Warp, typename T, typename Term>
THINWIRE_ON_DEVICE T lane_sum(std::int64_t count, Term term) {
  typename Warp::template Lanes<T> sums{};
  Warp::rows(count, [&](std::int64_t begin, int n) {
    Warp::each(n, [&](int lane) { sums[lane] += term(begin + lane); });
  });
  return Warp::fold(sums);
}

}  // namespace bodies
}  // namespace thinwire
