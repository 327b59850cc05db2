// Every kernel on a GPU against its host instance, bit for bit, on random shapes; then the bytes
// per second that each one reaches.
//   kernels_gpu_test [largest number of elements to time]
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "collectives/compression/kernels/kernels.h"
#include "optimizers/kernels/kernels.h"
#include "tests/compression/kernel_cases.h"

namespace thinwire {
namespace {

using namespace kernel_cases;

void check_cuda(cudaError_t code) {
  if (code != cudaSuccess) throw std::runtime_error(cudaGetErrorString(code));
}

// Zeros, or a copy of host memory, on the GPU.
template <typename T>
class Device {
 public:
  explicit Device(std::int64_t count) : count_(static_cast<std::size_t>(count)) {
    check_cuda(cudaMalloc(&data_, std::max<std::size_t>(1, count_ * sizeof(T))));
    check_cuda(cudaMemset(data_, 0, count_ * sizeof(T)));
  }
  explicit Device(const std::vector<T>& host) : Device(std::ssize(host)) {
    check_cuda(cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* data() { return static_cast<T*>(data_); }
  // Waits for what runs.
  std::vector<T> host() const {
    std::vector<T> copy(count_);
    check_cuda(cudaMemcpy(copy.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return copy;
  }

 private:
  std::size_t count_;
  void* data_ = nullptr;
};

// Throws with the place where the two first differ.
template <typename T>
void expect_equal(const char* what, const std::vector<T>& device, const std::vector<T>& host) {
  const std::string found = difference(device.data(), host.data(), std::ssize(host));
  if (!found.empty()) throw std::runtime_error(fmt::format("{} differs: {}", what, found));
}

template <typename T>
void expect_equal_payloads(const char* what, const Table& table, const std::vector<char>& device,
                           const std::vector<char>& host) {
  const std::string found = payload_difference<T>(table, device.data(), host.data());
  if (!found.empty()) throw std::runtime_error(fmt::format("{} differs: {}", what, found));
}

void expect_equal_flags(const char* what, const Device<std::int32_t>& device, std::int32_t host) {
  const std::int32_t found = device.host()[0];
  if (found != host) throw std::runtime_error(fmt::format("{}: {} and {}", what, found, host));
}

template <typename T>
std::vector<char> compare_encode(Dice& dice, const Table& table) {
  const bool feedback = dice.below(3) > 0;
  std::vector<T> gradient = random_values<T>(dice, table, Values::any);
  const std::vector<T> residual = random_values<T>(dice, table, Values::finite);
  std::vector<char> payload(static_cast<std::size_t>(table.bytes));
  Device<Block> blocks(table.blocks);
  Device<T> device_gradient(gradient);
  Device<T> device_residual(residual);
  Device<char> device_payload(table.bytes);
  host_kernels<T>().encode({.blocks = table.blocks.data(),
                            .block_count = std::ssize(table.blocks),
                            .gradient = gradient.data(),
                            .residual = {.error = feedback ? residual.data() : nullptr},
                            .payload = payload.data()},
                           nullptr);
  cuda_kernels<T>().encode({.blocks = blocks.data(),
                            .block_count = std::ssize(table.blocks),
                            .gradient = device_gradient.data(),
                            .residual = {.error = feedback ? device_residual.data() : nullptr},
                            .payload = device_payload.data()},
                           nullptr);
  expect_equal_payloads<T>("encode's payload", table, device_payload.host(), payload);
  expect_equal("encode's gradient", device_gradient.host(), gradient);
  return payload;
}

template <typename T>
void compare_received(const Table& table, const std::vector<char>& payload) {
  std::vector<T> gradient(static_cast<std::size_t>(table.numel));
  std::int32_t flag = INT32_MAX;
  Device<Block> blocks(table.blocks);
  Device<char> device_payload(payload);
  Device<T> device_gradient(gradient);
  Device<std::int32_t> device_flag(std::vector<std::int32_t>{flag});
  const std::int64_t count = std::ssize(table.blocks);
  host_kernels<T>().decode({.blocks = table.blocks.data(),
                            .block_count = count,
                            .payload = payload.data(),
                            .into = gradient.data()},
                           nullptr);
  host_kernels<T>().first_non_finite({.blocks = table.blocks.data(),
                                      .block_count = count,
                                      .payload = payload.data(),
                                      .flag = &flag},
                                     nullptr);
  cuda_kernels<T>().decode({.blocks = blocks.data(),
                            .block_count = count,
                            .payload = device_payload.data(),
                            .into = device_gradient.data()},
                           nullptr);
  cuda_kernels<T>().first_non_finite({.blocks = blocks.data(),
                                      .block_count = count,
                                      .payload = device_payload.data(),
                                      .flag = device_flag.data()},
                                     nullptr);
  expect_equal("decode's gradient", device_gradient.host(), gradient);
  expect_equal_flags("first_non_finite", device_flag, flag);
}

template <typename T>
void compare_owner_reduce(Dice& dice) {
  constexpr std::int32_t sizes[] = {1, 2, 3, 4, 7, 64};
  const std::int32_t ranks = sizes[dice.below(6)];
  const OwnedChunk owned = random_chunk<T>(dice);
  const Table& chunk = owned.chunk;
  const std::int64_t stride = chunk.bytes + 3;
  std::vector<char> arrived(static_cast<std::size_t>(stride * ranks));
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    const Values kind = dice.below(ranks + 1) == 0 ? Values::any : Values::finite;
    std::vector<T> message = random_values<T>(dice, chunk, kind);
    host_kernels<T>().encode({.blocks = chunk.blocks.data(),
                              .block_count = std::ssize(chunk.blocks),
                              .gradient = message.data(),
                              .payload = arrived.data() + rank * stride},
                             nullptr);
  }
  const bool feedback = dice.below(3) > 0;
  const std::vector<T> all = random_values<T>(dice, chunk, Values::finite);
  const std::vector<T> residual(all.begin() + owned.begin, all.begin() + owned.end);
  std::vector<T> next(residual.size());
  std::vector<char> reply(static_cast<std::size_t>(chunk.bytes));
  Device<Block> blocks(owned.bucket.blocks);
  Device<char> device_arrived(arrived);
  Device<T> device_residual(residual);
  Device<T> device_next(next);
  Device<char> device_reply(chunk.bytes);
  OwnerReduceArgs<T> args{.blocks = owned.blocks(),
                          .block_count = std::ssize(chunk.blocks),
                          .chunk_begin = owned.begin,
                          .payload_begin = owned.payload_begin,
                          .arrived = arrived.data(),
                          .stride = stride,
                          .ranks = ranks,
                          .residual = {.error = feedback ? residual.data() : nullptr},
                          .owner_next = next.data(),
                          .reply = reply.data()};
  host_kernels<T>().owner_reduce(args, nullptr);
  args.blocks = blocks.data() + (owned.blocks() - owned.bucket.blocks.data());
  args.arrived = device_arrived.data();
  args.residual.error = feedback ? device_residual.data() : nullptr;
  args.owner_next = device_next.data();
  args.reply = device_reply.data();
  cuda_kernels<T>().owner_reduce(args, nullptr);
  expect_equal_payloads<T>("owner_reduce's reply", chunk, device_reply.host(), reply);
  expect_equal("owner_reduce's residual", device_next.host(), next);
}

template <typename T>
void compare_mean_and_check(Dice& dice, const Table& table) {
  constexpr std::int32_t sizes[] = {1, 2, 3, 4, 7};
  std::vector<T> gradient =
      random_values<T>(dice, table, dice.below(2) == 0 ? Values::finite : Values::any);
  std::int32_t flag = INT32_MAX;
  Device<Block> blocks(table.blocks);
  Device<T> device_gradient(gradient);
  Device<std::int32_t> device_flag(std::vector<std::int32_t>{flag});
  MeanAndCheckArgs<T> args{.blocks = table.blocks.data(),
                           .block_count = std::ssize(table.blocks),
                           .gradient = gradient.data(),
                           .ranks = sizes[dice.below(5)],
                           .flag = &flag};
  host_kernels<T>().mean_and_check(args, nullptr);
  args.blocks = blocks.data();
  args.gradient = device_gradient.data();
  args.flag = device_flag.data();
  cuda_kernels<T>().mean_and_check(args, nullptr);
  expect_equal("mean_and_check's gradient", device_gradient.host(), gradient);
  expect_equal_flags("mean_and_check", device_flag, flag);
}

// Slices of all sizes, some over several tiles of a GPU's kernel and some of no elements.
std::vector<StepSlice> random_slices(Dice& dice) {
  constexpr std::int64_t sizes[] = {0, 1, 5, 33, 1000, 4096, 9001, 20000};
  std::vector<StepSlice> slices;
  std::int64_t offset = 0;
  for (int i = 0; i < 12; ++i) {
    offset += dice.below(100);
    StepSlice slice{.offset = offset, .numel = sizes[dice.below(8)]};
    slice.weight_decay = dice.below(2) == 0 ? 0 : 0.01 * dice.uniform();
    slice.lr_scale = dice.below(2) == 0 ? 1 : dice.uniform();
    // A slice that is left out is frozen.
    if (dice.below(5) > 0) slices.push_back(slice);
    offset += slice.numel;
  }
  return slices;
}

template <typename T>
std::vector<T> uniform_values(Dice& dice, std::int64_t count, double lowest) {
  std::vector<T> values;
  for (std::int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<T>(lowest + (1 - lowest) * dice.uniform()));
  }
  return values;
}

template <typename T>
void compare_optimizers(Dice& dice) {
  const std::vector<StepSlice> slices = random_slices(dice);
  const std::int64_t numel = 12 * 20100;
  std::vector<T> weights = uniform_values<T>(dice, numel, -1);
  const std::vector<T> gradient = uniform_values<T>(dice, numel, -1);
  std::vector<T> first = uniform_values<T>(dice, numel, -1);
  std::vector<T> second = uniform_values<T>(dice, numel, 0);
  std::vector<T> highest = uniform_values<T>(dice, numel, 0);
  Device<StepSlice> device_slices(slices);
  Device<T> device_weights(weights);
  Device<T> device_gradient(gradient);
  Device<T> device_first(first);
  Device<T> device_second(second);
  Device<T> device_highest(highest);
  const SgdStep sgd{.lr = 0.1,
                    .gradient_scale = dice.uniform(),
                    .momentum = 0.9,
                    .take = 0.7,
                    .direct = dice.below(2) == 0 ? 0.0 : 1.0,
                    .buffered = 0.9};
  const bool momentum = dice.below(2) == 0;
  host_optimizer_kernels<T>().sgd({.slices = slices.data(),
                                   .slice_count = std::ssize(slices),
                                   .numel = numel,
                                   .weights = weights.data(),
                                   .gradient = gradient.data(),
                                   .momentum = momentum ? first.data() : nullptr,
                                   .step = sgd},
                                  nullptr);
  cuda_optimizer_kernels<T>().sgd({.slices = device_slices.data(),
                                   .slice_count = std::ssize(slices),
                                   .numel = numel,
                                   .weights = device_weights.data(),
                                   .gradient = device_gradient.data(),
                                   .momentum = momentum ? device_first.data() : nullptr,
                                   .step = sgd},
                                  nullptr);
  expect_equal("sgd's weights", device_weights.host(), weights);
  expect_equal("sgd's momentum", device_first.host(), first);

  const double t = 1 + static_cast<double>(dice.below(1000));
  const AdamStep adam{.lr = 0.01,
                      .gradient_scale = dice.uniform(),
                      .decay = dice.below(2) == 0 ? WeightDecay::coupled : WeightDecay::decoupled,
                      .bias1 = 1 - std::pow(0.9, t),
                      .sqrt_bias2 = std::sqrt(1 - std::pow(0.999, t))};
  const bool amsgrad = dice.below(2) == 0;
  host_optimizer_kernels<T>().adam({.slices = slices.data(),
                                    .slice_count = std::ssize(slices),
                                    .numel = numel,
                                    .weights = weights.data(),
                                    .gradient = gradient.data(),
                                    .exp_avg = first.data(),
                                    .exp_avg_sq = second.data(),
                                    .max_exp_avg_sq = amsgrad ? highest.data() : nullptr,
                                    .step = adam},
                                   nullptr);
  cuda_optimizer_kernels<T>().adam({.slices = device_slices.data(),
                                    .slice_count = std::ssize(slices),
                                    .numel = numel,
                                    .weights = device_weights.data(),
                                    .gradient = device_gradient.data(),
                                    .exp_avg = device_first.data(),
                                    .exp_avg_sq = device_second.data(),
                                    .max_exp_avg_sq = amsgrad ? device_highest.data() : nullptr,
                                    .step = adam},
                                   nullptr);
  expect_equal("adam's weights", device_weights.host(), weights);
  expect_equal("adam's first moment", device_first.host(), first);
  expect_equal("adam's second moment", device_second.host(), second);
  expect_equal("adam's highest moment", device_highest.host(), highest);
}

template <typename T>
void compare_squared_norm(Dice& dice) {
  std::vector<NormBlock> blocks;
  std::int64_t numel = 0;
  const std::int64_t count = dice.below(200);
  for (std::int64_t b = 0; b < count; ++b) {
    const std::int64_t size = dice.below(2) == 0 ? norm_block : 1 + dice.below(norm_block);
    blocks.push_back({numel, static_cast<std::int32_t>(size)});
    numel += size + dice.below(3);
  }
  const std::vector<T> values = uniform_values<T>(dice, numel, -1);
  std::vector<double> sums(blocks.size());
  std::vector<double> result(1);
  Device<NormBlock> device_blocks(blocks);
  Device<T> device_values(values);
  Device<double> device_sums(count);
  Device<double> device_result(result);
  host_optimizer_kernels<T>().squared_norm({.blocks = blocks.data(),
                                            .block_count = count,
                                            .values = values.data(),
                                            .block_sums = sums.data(),
                                            .result = result.data()},
                                           nullptr);
  cuda_optimizer_kernels<T>().squared_norm({.blocks = device_blocks.data(),
                                            .block_count = count,
                                            .values = device_values.data(),
                                            .block_sums = device_sums.data(),
                                            .result = device_result.data()},
                                           nullptr);
  expect_equal("squared_norm", device_result.host(), result);
}

template <typename T>
void compare_all(const char* type) {
  constexpr std::uint64_t cases = 100;
  for (std::uint64_t seed = 0; seed < cases; ++seed) {
    try {
      Dice dice(seed);
      const Table table = random_table<T>(dice);
      compare_received<T>(table, compare_encode<T>(dice, table));
      compare_owner_reduce<T>(dice);
      compare_mean_and_check<T>(dice, table);
      compare_optimizers<T>(dice);
      compare_squared_norm<T>(dice);
    } catch (const std::exception& error) {
      throw std::runtime_error(fmt::format("{}, seed {}: {}", type, seed, error.what()));
    }
  }
  fmt::print("{}: {} random cases are equal on host and GPU, bit for bit\n", type, cases);
}

// Prints the best of ten launches; `bytes` are those that must pass through memory.
void report(const char* name, double bytes, const std::function<void()>& launch) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  check_cuda(cudaEventCreate(&begin));
  check_cuda(cudaEventCreate(&end));
  float best = INFINITY;
  for (int repeat = 0; repeat < 11; ++repeat) {
    check_cuda(cudaEventRecord(begin, nullptr));
    launch();
    check_cuda(cudaEventRecord(end, nullptr));
    check_cuda(cudaEventSynchronize(end));
    float milliseconds = 0;
    check_cuda(cudaEventElapsedTime(&milliseconds, begin, end));
    if (repeat > 0) best = std::min(best, milliseconds);
  }
  check_cuda(cudaEventDestroy(begin));
  check_cuda(cudaEventDestroy(end));
  fmt::print("  {:<34} {:9.3f} ms {:9.1f} GB/s\n", name, static_cast<double>(best),
             bytes / (1e6 * static_cast<double>(best)));
}

std::vector<Block> whole_blocks(std::int64_t numel, Coding coding) {
  std::vector<Block> blocks;
  std::int64_t payload = 0;
  for (std::int64_t begin = 0; begin < numel; begin += 1024) {
    const auto count = static_cast<std::int32_t>(std::min<std::int64_t>(1024, numel - begin));
    blocks.push_back(
        {.begin = begin, .payload = payload, .count = count, .format = {.coding = coding}});
    payload += payload_bytes<float>({.coding = coding}, count);
  }
  return blocks;
}

void time_all(std::int64_t numel) {
  const std::vector<Block> table = whole_blocks(numel, Coding::sign);
  const std::int64_t count = std::ssize(table);
  const std::int64_t payload_bytes =
      table.back().payload + payload_bytes<float>({.coding = Coding::sign}, table.back().count);
  constexpr std::int32_t ranks = 8;
  const std::int64_t own_count = std::max<std::int64_t>(1, count / ranks);
  const std::int64_t own_bytes =
      own_count < count ? table[static_cast<std::size_t>(own_count)].payload : payload_bytes;
  const auto own_numel = static_cast<double>(std::min(numel, own_count * 1024));
  std::vector<NormBlock> norm_table;
  for (const Block& block : table) norm_table.push_back({block.begin, block.count});

  Device<Block> blocks(table);
  Device<NormBlock> norm_blocks(norm_table);
  Device<StepSlice> slices(std::vector<StepSlice>{{.offset = 0, .numel = numel}});
  Device<float> gradient(numel), residual(numel), weights(numel), first(numel), second(numel);
  Device<char> payload(payload_bytes), arrived(own_bytes * ranks), reply(own_bytes);
  Device<std::int32_t> flag(std::vector<std::int32_t>{INT32_MAX});
  Device<double> sums(count), result(1);
  const Kernels<float> kernels = cuda_kernels<float>();
  const OptimizerKernels<float> optimizers = cuda_optimizer_kernels<float>();
  const double values = 4 * static_cast<double>(numel);
  const auto packed = static_cast<double>(payload_bytes);

  fmt::print("{:.1f} M elements, float, blocks of 1024\n", static_cast<double>(numel) / 1e6);
  report("encode, sign, error feedback", 3 * values + packed, [&] {
    kernels.encode({.blocks = blocks.data(),
                    .block_count = count,
                    .gradient = gradient.data(),
                    .residual = {.error = residual.data()},
                    .payload = payload.data()},
                   nullptr);
  });
  report("encode, sign", values + packed, [&] {
    kernels.encode({.blocks = blocks.data(),
                    .block_count = count,
                    .gradient = gradient.data(),
                    .payload = payload.data()},
                   nullptr);
  });
  report("owner reduce of 8 ranks, an eighth",
         8 * own_numel + static_cast<double>(own_bytes * (ranks + 1)), [&] {
           kernels.owner_reduce({.blocks = blocks.data(),
                                 .block_count = own_count,
                                 .arrived = arrived.data(),
                                 .stride = own_bytes,
                                 .ranks = ranks,
                                 .residual = {.error = residual.data()},
                                 .owner_next = first.data(),
                                 .reply = reply.data()},
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
  report("sgd, momentum", 5 * values, [&] {
    optimizers.sgd({.slices = slices.data(),
                    .slice_count = 1,
                    .numel = numel,
                    .weights = weights.data(),
                    .gradient = gradient.data(),
                    .momentum = first.data(),
                    .step = {.lr = 0.1, .momentum = 0.9}},
                   nullptr);
  });
  report("adam", 7 * values, [&] {
    optimizers.adam({.slices = slices.data(),
                     .slice_count = 1,
                     .numel = numel,
                     .weights = weights.data(),
                     .gradient = gradient.data(),
                     .exp_avg = first.data(),
                     .exp_avg_sq = second.data(),
                     .step = {.lr = 0.1}},
                    nullptr);
  });
  report("squared norm", values, [&] {
    optimizers.squared_norm({.blocks = norm_blocks.data(),
                             .block_count = count,
                             .values = gradient.data(),
                             .block_sums = sums.data(),
                             .result = result.data()},
                            nullptr);
  });
}

int run(std::int64_t largest) {
  int devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&devices);
  if (found != cudaSuccess || devices == 0) {
    fmt::print("no GPU: nothing to compare ({})\n", cudaGetErrorString(found));
    return 0;
  }
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, 0));
  fmt::print("{}\n", properties.name);
  compare_all<float>("float");
  compare_all<double>("double");
  for (const std::int64_t numel : {25'600'000, 335'000'000}) {
    if (numel <= largest) time_all(numel);
  }
  return 0;
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  try {
    return thinwire::run(argc > 1 ? std::atoll(argv[1]) : 335'000'000);
  } catch (const std::exception& error) {
    fmt::print("FAILED: {}\n", error.what());
    return 1;
  }
}
