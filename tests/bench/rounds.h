// Operations that are timed against each other, and the memory that they work on.
#pragma once

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "collectives/compression/codings/list.h"
#include "collectives/compression/kernels/kernels.h"

namespace thinwire {

// A packed message of blocks of one coding.
struct Table {
  std::vector<Block> blocks;
  std::int64_t bytes = 0;
  std::int64_t count() const { return static_cast<std::int64_t>(blocks.size()); }
};

template <typename C>
Table table_of(std::int64_t numel, const C& options, std::int32_t size) {
  Table table;
  for (std::int64_t begin = 0; begin < numel; begin += size) {
    const auto count = static_cast<std::int32_t>(std::min<std::int64_t>(size, numel - begin));
    const Format format = format_of(options, count);
    table.blocks.push_back(
        {.begin = begin, .payload = table.bytes, .count = count, .format = format});
    table.bytes += payload_bytes<float>(format, count);
  }
  return table;
}

// In huge pages, as the command has libtorch put its large tensors.
using Memory = std::unique_ptr<float[], decltype(&std::free)>;
inline Memory memory(std::int64_t numel) {
  constexpr std::size_t page = 2 << 20;
  const std::size_t bytes =
      (static_cast<std::size_t>(numel) * sizeof(float) + page - 1) / page * page;
  Memory all(static_cast<float*>(std::aligned_alloc(page, bytes)), &std::free);
  if (all == nullptr) throw std::bad_alloc();
  madvise(all.get(), bytes, MADV_HUGEPAGE);  // may be refused
  std::fill_n(all.get(), numel, 0.0F);
  return all;
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Operation {
  std::string name;
  std::function<void()> run;
  // Read and written per element at the least: what is stored need not have been read before.
  double bytes = 0;  // 0: not counted
  std::vector<double> seconds = {};
};

// Prints what each operation takes per element, and as a multiple of the first; then the bytes per
// element that it must move, and those as a rate. Rounds of all follow each other; one more, at the
// start, does not count.
inline void run_rounds(std::vector<Operation>& operations, std::int64_t numel, int rounds,
                       const std::function<void()>& refresh) {
  for (int round = 0; round < rounds + 1; ++round) {
    for (Operation& operation : operations) {
      refresh();
      const auto begin = std::chrono::steady_clock::now();
      operation.run();
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      if (round > 0) operation.seconds.push_back(taken.count());
    }
  }
  for (const Operation& operation : operations) {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < operation.seconds.size(); ++i) {
      ratios.push_back(operation.seconds[i] / operations.front().seconds[i]);
    }
    const double nanoseconds = 1e9 * median(operation.seconds) / static_cast<double>(numel);
    fmt::print("{:<44} {:7.3f} ns/element {:7.2f} x", operation.name, nanoseconds, median(ratios));
    if (operation.bytes > 0) {
      fmt::print(" {:7.3f} B {:6.1f} GB/s", operation.bytes, operation.bytes / nanoseconds);
    }
    fmt::print("\n");
  }
}

}  // namespace thinwire
