// Nanoseconds per element of the host's kernels, beside `b += a` over the same memory.
//   kernels [elements]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <vector>

#include "collectives/compression/kernels/kernels.h"
#include "optimizers/kernels/kernels.h"

namespace thinwire {
namespace {

constexpr std::int32_t block_size = 1024;

std::vector<Block> blocks_of(std::int64_t numel, Coding coding) {
  std::vector<Block> blocks;
  std::int64_t payload = 0;
  for (std::int64_t begin = 0; begin < numel; begin += block_size) {
    const auto count = static_cast<std::int32_t>(std::min<std::int64_t>(block_size, numel - begin));
    blocks.push_back(
        {.begin = begin, .payload = payload, .count = count, .format = {.coding = coding}});
    payload += payload_bytes<float>({.coding = coding}, count);
  }
  return blocks;
}

// The best of five.
template <typename Body>
void report(const char* name, std::int64_t elements, Body body) {
  double best = 1e30;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    best = std::min(best, taken.count());
  }
  fmt::print("{:<44} {:7.3f} ns/element\n", name, 1e9 * best / static_cast<double>(elements));
}

void run(std::int64_t numel) {
  const auto n = static_cast<std::size_t>(numel);
  std::vector<float> gradient(n);
  std::vector<float> residual(n);
  std::vector<float> state(n);
  for (std::size_t i = 0; i < n; ++i) {
    gradient[i] = static_cast<float>(static_cast<std::int64_t>(i * 2654435761u % 2001) - 1000);
    residual[i] = static_cast<float>(static_cast<std::int64_t>(i * 40503u % 2001) - 1000);
  }
  const auto fill = [&] { std::fill(gradient.begin(), gradient.end(), 0.5f); };

  report("b += a", numel, [&] {
    float* b = gradient.data();
    const float* a = residual.data();
    for (std::size_t i = 0; i < n; ++i) b[i] += a[i];
  });

  const Kernels<float> kernels = host_kernels<float>();
  for (const Coding coding : {Coding::sign, Coding::raw}) {
    const char* word = coding == Coding::sign ? "sign" : "raw";
    const std::vector<Block> blocks = blocks_of(numel, coding);
    const auto count = static_cast<std::int64_t>(blocks.size());
    const std::int64_t bytes =
        blocks.back().payload + payload_bytes<float>({.coding = coding}, blocks.back().count);
    std::vector<char> payload(static_cast<std::size_t>(bytes));
    std::vector<char> reply(static_cast<std::size_t>(bytes));
    fill();
    report(fmt::format("encode, error feedback, {}", word).c_str(), numel, [&] {
      kernels.encode({.blocks = blocks.data(),
                      .block_count = count,
                      .gradient = gradient.data(),
                      .residual = {.error = residual.data()},
                      .payload = payload.data()},
                     nullptr);
    });
    report(fmt::format("encode, {}", word).c_str(), numel, [&] {
      kernels.encode({.blocks = blocks.data(),
                      .block_count = count,
                      .gradient = gradient.data(),
                      .residual = {.error = nullptr},
                      .payload = payload.data()},
                     nullptr);
    });
    for (const std::int32_t ranks : {1, 4, 8}) {
      if (coding == Coding::raw && ranks > 1) continue;
      // All ranks' messages are the same memory, which only their sum's value shows.
      report(fmt::format("owner reduce of {}, {}", ranks, word).c_str(), numel, [&] {
        kernels.owner_reduce({.blocks = blocks.data(),
                              .block_count = count,
                              .arrived = payload.data(),
                              .stride = 0,
                              .ranks = ranks,
                              .residual = {.error = residual.data()},
                              .owner_next = state.data(),
                              .reply = reply.data()},
                             nullptr);
      });
    }
    std::int32_t flag = INT32_MAX;
    report(fmt::format("first non-finite, {}", word).c_str(), numel, [&] {
      kernels.first_non_finite(
          {.blocks = blocks.data(), .block_count = count, .payload = payload.data(), .flag = &flag},
          nullptr);
    });
    report(fmt::format("decode, {}", word).c_str(), numel, [&] {
      kernels.decode({.blocks = blocks.data(),
                      .block_count = count,
                      .payload = payload.data(),
                      .into = gradient.data()},
                     nullptr);
    });
    if (coding == Coding::raw) {
      report("mean and check of 4", numel, [&] {
        kernels.mean_and_check({.blocks = blocks.data(),
                                .block_count = count,
                                .gradient = gradient.data(),
                                .ranks = 4,
                                .flag = &flag},
                               nullptr);
      });
    }
  }
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  thinwire::run(argc > 1 ? std::atoll(argv[1]) : 25'600'000);
}
