// What each kernel does with one block; Warp is HostWarp or DeviceWarp. The formats and the order
// of arithmetic are those of SignCodec, IdentityCodec and error feedback composed.
#pragma once

#include <cmath>
#include <limits>

#include "collectives/compression/kernels/kernels.h"
#include "collectives/compression/kernels/warp.h"

namespace thinwire::bodies {

// The sum of term(i) over `count` elements.
template <typename Warp, typename T, typename Term>
THINWIRE_ON_DEVICE T lane_sum(std::int64_t count, Term term) {
  typename Warp::template Lanes<T> sums{};
  Warp::rows(count, [&](std::int64_t begin, int n) {
    Warp::each(n, [&](int lane) { sums[lane] += term(begin + lane); });
  });
  return Warp::fold(sums);
}

// Whether value(i) is finite for all elements: x - x is zero for finite x and NaN otherwise.
template <typename Warp, typename T, typename Value>
THINWIRE_ON_DEVICE bool all_finite(std::int64_t count, Value value) {
  return lane_sum<Warp, T>(count, [&](std::int64_t i) {
           const T x = value(i);
           return x - x;
         }) == 0;
}

// A device may use constants, but not call the host's functions that make them.
template <typename T>
inline constexpr T smallest_normal = std::numeric_limits<T>::min();
template <typename T>
inline constexpr T not_finite = std::numeric_limits<T>::quiet_NaN();

template <typename T>
THINWIRE_ON_DEVICE T scale_of(T sum_of_magnitudes, std::int64_t count) {
  const T scale = sum_of_magnitudes / static_cast<T>(count);
  if (!(scale - scale == 0)) return not_finite<T>;
  return scale < smallest_normal<T> ? T{0} : scale;
}

// payload := code(message(i)), and absorb(i, message, -decoded) for each element.
template <typename Warp, typename T, typename Message, typename Absorb>
THINWIRE_ON_DEVICE void code(Coding coding, std::int64_t count, char* payload, Message message,
                             Absorb absorb) {
  if (coding == Coding::raw) {
    Warp::rows(count, [&](std::int64_t begin, int n) {
      Warp::each(n, [&](int lane) {
        const std::int64_t i = begin + lane;
        const T m = message(i);
        store(payload + i * static_cast<std::int64_t>(sizeof(T)), m);
        absorb(i, m, -m);
      });
    });
    return;
  }
  const T sum = lane_sum<Warp, T>(count, [&](std::int64_t i) { return std::abs(message(i)); });
  const T scale = scale_of(sum, count);
  Warp::once([&] { store(payload, scale); });
  char* bits = payload + sizeof(T);
  Warp::rows(count, [&](std::int64_t begin, int n) {
    const std::uint32_t word = Warp::ballot(n, [&](int lane) {
      const T m = message(begin + lane);
      const bool negative = m < 0;
      absorb(begin + lane, m, negative ? scale : -scale);
      return !negative;
    });
    Warp::store_bits(bits + begin / 8, n, word);
  });
}

template <typename Warp, typename T>
THINWIRE_ON_DEVICE void encode(const EncodeArgs<T>& args, const Block& block) {
  T* gradient = args.gradient + block.begin;
  char* payload = args.payload + block.payload;
  if (args.residual.error == nullptr) {
    if (block.format.coding == Coding::held) return;
    code<Warp, T>(
        block.format.coding, block.count, payload, [&](std::int64_t i) { return gradient[i]; },
        [](std::int64_t, T, T) {});
    return;
  }
  const T* residual = args.residual.error + block.begin;
  if (block.format.coding == Coding::held) {
    Warp::rows(block.count, [&](std::int64_t begin, int n) {
      Warp::each(n, [&](int lane) { gradient[begin + lane] = residual[begin + lane]; });
    });
    return;
  }
  code<Warp, T>(
      block.format.coding, block.count, payload,
      [&](std::int64_t i) { return gradient[i] + residual[i]; },
      [&](std::int64_t i, T m, T minus_decoded) { gradient[i] = m + minus_decoded; });
}

// The mean over ranks of one row of a block; `payload` is the first rank's of the block.
template <typename Warp, typename T>
THINWIRE_ON_DEVICE typename Warp::template Lanes<T> mean_of_row(const char* payload,
                                                                std::int64_t stride,
                                                                std::int32_t ranks, Coding coding,
                                                                std::int64_t begin, int n) {
  typename Warp::template Lanes<T> mean{};
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    const char* from = payload + rank * stride;
    if (coding == Coding::raw) {
      const char* values = from + begin * static_cast<std::int64_t>(sizeof(T));
      Warp::each(n, [&](int lane) {
        mean[lane] += load<T>(values + lane * static_cast<std::int64_t>(sizeof(T)));
      });
    } else {
      const T scale = load<T>(from);
      const auto bits = Warp::load_bits(from + sizeof(T) + begin / 8, n);
      Warp::each(n, [&](int lane) { mean[lane] += bits[lane] ? scale : -scale; });
    }
  }
  if (ranks > 1) {
    const T divisor = static_cast<T>(ranks);
    Warp::each(n, [&](int lane) { mean[lane] /= divisor; });
  }
  return mean;
}

template <typename Warp, typename T>
THINWIRE_ON_DEVICE void owner_reduce(const OwnerReduceArgs<T>& args, const Block& block) {
  const std::int64_t chunk_offset = block.begin - args.chunk_begin;
  const std::int64_t payload_offset = block.payload - args.payload_begin;
  const T* residual = args.residual.error ? args.residual.error + chunk_offset : nullptr;
  T* next = args.owner_next + chunk_offset;
  if (block.format.coding == Coding::held) {
    if (residual == nullptr) return;
    Warp::rows(block.count, [&](std::int64_t begin, int n) {
      Warp::each(n, [&](int lane) { next[begin + lane] = residual[begin + lane]; });
    });
    return;
  }
  const char* arrived = args.arrived + payload_offset;
  Warp::rows(block.count, [&](std::int64_t begin, int n) {
    auto mean =
        mean_of_row<Warp, T>(arrived, args.stride, args.ranks, block.format.coding, begin, n);
    if (residual != nullptr) {
      Warp::each(n, [&](int lane) { mean[lane] += residual[begin + lane]; });
    }
    Warp::each(n, [&](int lane) { next[begin + lane] = mean[lane]; });
  });
  code<Warp, T>(
      block.format.coding, block.count, args.reply + payload_offset,
      [&](std::int64_t i) { return next[i]; },
      [&](std::int64_t i, T m, T minus_decoded) { next[i] = m + minus_decoded; });
}

template <typename Warp, typename T>
THINWIRE_ON_DEVICE void first_non_finite(const FirstNonFiniteArgs<T>& args, const Block& block) {
  if (block.format.coding == Coding::held) return;
  // A sign block says so in its scale.
  const std::int64_t values = block.format.coding == Coding::raw ? block.count : 1;
  bool finite = true;
  for (std::int32_t rank = 0; rank < args.ranks; ++rank) {
    const char* payload = args.payload + rank * args.stride + block.payload;
    finite = finite && all_finite<Warp, T>(values, [&](std::int64_t i) {
               return load<T>(payload + i * static_cast<std::int64_t>(sizeof(T)));
             });
  }
  if (!finite) Warp::lower(args.flag, block.slice);
}

// absorb(i, mean) for every element of a block.
template <typename Warp, typename T, typename Absorb>
THINWIRE_ON_DEVICE void each_mean(const DecodeArgs<T>& args, const Block& block, Absorb absorb) {
  Warp::rows(block.count, [&](std::int64_t begin, int n) {
    auto mean = mean_of_row<Warp, T>(args.payload + block.payload, args.stride, args.ranks,
                                     block.format.coding, begin, n);
    Warp::each(n, [&](int lane) { absorb(begin + lane, mean[lane]); });
  });
}

template <typename Warp, typename T>
THINWIRE_ON_DEVICE void decode(const DecodeArgs<T>& args, const Block& block) {
  T* into = args.into + block.begin;
  if (block.format.coding == Coding::held) {
    Warp::rows(block.count, [&](std::int64_t begin, int n) {
      Warp::each(n, [&](int lane) { into[begin + lane] = 0; });
    });
    return;
  }
  each_mean<Warp>(args, block, [&](std::int64_t i, T mean) { into[i] = mean; });
}

template <typename Warp, typename T>
THINWIRE_ON_DEVICE void integrate(const DecodeArgs<T>& args, const Block& block) {
  T* into = args.into + block.begin;
  if (block.format.coding == Coding::held) return;
  each_mean<Warp>(args, block, [&](std::int64_t i, T mean) { into[i] += mean; });
}

template <typename Warp, typename T>
THINWIRE_ON_DEVICE void mean_and_check(const MeanAndCheckArgs<T>& args, const Block& block) {
  T* gradient = args.gradient + block.begin;
  const T ranks = static_cast<T>(args.ranks);
  // x / 1 is x.
  const bool finite = all_finite<Warp, T>(block.count, [&](std::int64_t i) {
    const T sum = gradient[i];
    gradient[i] = sum / ranks;
    return sum;
  });
  if (!finite) Warp::lower(args.flag, block.slice);
}

}  // namespace thinwire::bodies
