#include "tests/gpu/kernels_gpu_times.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "collectives/compression/codings/list.h"
#include "collectives/compression/kernels/kernels.h"
#include "optimizers/kernels/kernels.h"
#include "tests/gpu/device.h"

namespace thinwire::on_gpu {

void report(const char* name, double bytes, const std::function<void()>& launch) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  check_cuda(cudaEventCreate(&begin));
  check_cuda(cudaEventCreate(&end));
  std::vector<float> times;
  for (int repeat = 0; repeat < 13; ++repeat) {
    check_cuda(cudaEventRecord(begin, nullptr));
    launch();
    check_cuda(cudaEventRecord(end, nullptr));
    check_cuda(cudaEventSynchronize(end));
    float milliseconds = 0;
    check_cuda(cudaEventElapsedTime(&milliseconds, begin, end));
    if (repeat > 1) times.push_back(milliseconds);
  }
  check_cuda(cudaEventDestroy(begin));
  check_cuda(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  fmt::print("  {:<34} {:9.3f} ms", name, median);
  if (bytes > 0) fmt::print(" {:9.1f} GB/s", bytes / (1e6 * median));
  fmt::print("\n");
}

namespace {

template <typename C>
std::vector<Block> whole_blocks(std::int64_t numel, const C& options, std::int32_t size) {
  std::vector<Block> blocks;
  std::int64_t payload = 0;
  for (std::int64_t begin = 0; begin < numel; begin += size) {
    const auto count = static_cast<std::int32_t>(std::min<std::int64_t>(size, numel - begin));
    const Format format = format_of(options, count);
    blocks.push_back({.begin = begin, .payload = payload, .count = count, .format = format});
    payload += payload_bytes<float>(format, count);
  }
  return blocks;
}

// Random numbers between -1 and 1.
std::vector<float> random_floats() {
  Dice dice(1);
  std::vector<float> values(1 << 20);
  for (float& value : values) value = static_cast<float>(2 * dice.uniform() - 1);
  return values;
}

template <typename C>
void time_coding(const char* name, std::int64_t numel, const C& options, std::int32_t size) {
  const std::vector<Block> table = whole_blocks(numel, options, size);
  const std::int64_t bytes =
      table.back().payload + payload_bytes<float>(table.back().format, table.back().count);
  Device<Block> blocks(table);
  Device<float> gradient(numel), residual(numel);
  const std::vector<float> random = random_floats();
  gradient.repeat(random);
  residual.repeat(random);
  Device<char> payload(bytes);
  const Kernels<float> kernels = cuda_kernels<float>();
  const double values = 4 * static_cast<double>(numel);
  const auto packed = static_cast<double>(bytes);
  report(fmt::format("encode, {}, error feedback", name).c_str(), 3 * values + packed, [&] {
    kernels.encode({.blocks = blocks.data(),
                    .block_count = std::ssize(table),
                    .gradient = gradient.data(),
                    .residual = {.error = residual.data()},
                    .payload = payload.data()},
                   nullptr);
  });
  report(fmt::format("decode, {}", name).c_str(), values + packed, [&] {
    kernels.decode({.blocks = blocks.data(),
                    .block_count = std::ssize(table),
                    .payload = payload.data(),
                    .into = gradient.data()},
                   nullptr);
  });
}

void time_signs_and_steps(std::int64_t numel) {
  const std::vector<Block> table = whole_blocks(numel, Sign{}, 1024);
  const std::int64_t count = std::ssize(table);
  const std::int64_t bytes =
      table.back().payload + payload_bytes<float>(table.back().format, table.back().count);
  constexpr std::int32_t ranks = 8;
  const std::int64_t own_count = std::max<std::int64_t>(1, count / ranks);
  const std::int64_t own_bytes =
      own_count < count ? table[static_cast<std::size_t>(own_count)].payload : bytes;
  const auto own_numel = static_cast<double>(std::min(numel, own_count * 1024));
  std::vector<NormBlock> norm_table;
  for (const Block& block : table) norm_table.push_back({block.begin, block.count});

  Device<Block> blocks(table);
  Device<NormBlock> norm_blocks(norm_table);
  Device<StepSlice> slices(std::vector<StepSlice>{{.offset = 0, .numel = numel}});
  Device<float> gradient(numel), residual(numel), weights(numel), first(numel), second(numel);
  const std::vector<float> random = random_floats();
  for (Device<float>* each : {&gradient, &residual, &weights, &first, &second}) {
    each->repeat(random);
  }
  Device<char> payload(bytes), arrived(own_bytes * ranks), reply(own_bytes);
  Device<std::int32_t> flag(std::vector<std::int32_t>{INT32_MAX});
  Device<double> sums(count), result(1);
  const Kernels<float> kernels = cuda_kernels<float>();
  const OptimizerKernels<float> optimizers = cuda_optimizer_kernels<float>();
  const double values = 4 * static_cast<double>(numel);
  const auto packed = static_cast<double>(bytes);

  fmt::print("{:.1f} M elements, float, blocks of 1024\n", static_cast<double>(numel) / 1e6);
  const std::vector<float> scales(static_cast<std::size_t>(count), 0.25F);
  Device<float> sent(scales), sent_next(scales);
  report("encode, sign, error feedback", 3 * values + packed, [&] {
    kernels.encode({.blocks = blocks.data(),
                    .block_count = count,
                    .gradient = gradient.data(),
                    .residual = {.error = residual.data(), .sent = sent.data()},
                    .payload = payload.data(),
                    .sent_next = sent_next.data()},
                   nullptr);
  });
  report("encode, sign", values + packed, [&] {
    kernels.encode({.blocks = blocks.data(),
                    .block_count = count,
                    .gradient = gradient.data(),
                    .residual = {},
                    .payload = payload.data()},
                   nullptr);
  });
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    check_cuda(cudaMemcpy(arrived.data() + rank * own_bytes, payload.data(),
                          static_cast<std::size_t>(own_bytes), cudaMemcpyDeviceToDevice));
  }
  report("a copy", 2 * values, [&] {
    check_cuda(cudaMemcpyAsync(weights.data(), first.data(), static_cast<std::size_t>(4 * numel),
                               cudaMemcpyDeviceToDevice, nullptr));
  });
  report("owner reduce of 8 ranks, an eighth",
         8 * own_numel + static_cast<double>(own_bytes * (ranks + 1)), [&] {
           kernels.owner_reduce({.blocks = blocks.data(),
                                 .block_count = own_count,
                                 .arrived = arrived.data(),
                                 .stride = own_bytes,
                                 .ranks = ranks,
                                 .residual = {.error = residual.data(), .sent = sent.data()},
                                 .owner_next = first.data(),
                                 .reply = reply.data(),
                                 .sent_next = sent_next.data()},
                                nullptr);
         });
  report("first non-finite, sign", 4 * static_cast<double>(count), [&] {
    kernels.first_non_finite({.blocks = blocks.data(),
                              .block_count = count,
                              .payload = payload.data(),
                              .flag = flag.data()},
                             nullptr);
  });
  report("decode, sign", values + packed, [&] {
    kernels.decode({.blocks = blocks.data(),
                    .block_count = count,
                    .payload = payload.data(),
                    .into = gradient.data()},
                   nullptr);
  });
  report("mean and check", 2 * values, [&] {
    kernels.mean_and_check({.blocks = blocks.data(),
                            .block_count = count,
                            .gradient = gradient.data(),
                            .ranks = ranks,
                            .flag = flag.data()},
                           nullptr);
  });
  const auto time_update = [&]<typename Rule>(const char* name, Rule,
                                              const typename Rule::Options& options) {
    const BucketView<float> bucket{slices.data(),
                                   1,
                                   numel,
                                   weights.data(),
                                   gradient.data(),
                                   {first.data(), second.data()},
                                   static_cast<int>(Rule::state(options).size())};
    const typename Rule::Step step = Rule::step(options, {.lr = 0.1});
    // The gradient is read; weights and states are read and written.
    report(name, (3 + 2 * bucket.state_count) * values,
           [&] { optimizers.step<Rule>(bucket, step, nullptr); });
  };
  time_update("sgd, momentum", SgdRule{}, {.momentum = 0.9});
  time_update("adam", AdamRule{}, {});
  time_update("lion", LionRule{}, {});
  report("squared norm", values, [&] {
    optimizers.squared_norm({.blocks = norm_blocks.data(),
                             .block_count = count,
                             .values = gradient.data(),
                             .block_sums = sums.data(),
                             .result = result.data()},
                            nullptr);
  });
}

}  // namespace

void print_times(std::int64_t numel) {
  time_signs_and_steps(numel);
  time_coding("4 bits", numel, Quantize{.bits = 4, .grid = Grid::symmetric}, 512);
  time_coding("bf16", numel, Cast{}, 1024);
  time_coding("top-k 1 %", numel, TopK{}, 4096);
}

}  // namespace thinwire::on_gpu
