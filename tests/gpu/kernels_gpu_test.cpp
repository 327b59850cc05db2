// Every kernel on a GPU against its host instance, bit for bit, on random shapes; then the bytes
// per second that each one reaches.
//   kernels_gpu_test [largest number of elements to time]
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "collectives/compression/kernels/kernels.h"
#include "optimizers/kernels/kernels.h"
#include "tests/compression/kernel_cases.h"
#include "tests/gpu/device.h"
#include "tests/gpu/kernels_gpu_times.h"
#include "tests/gpu/low_rank_gpu.h"
#include "tests/optimizers/cases.h"

namespace thinwire {
namespace {

using namespace on_gpu;

// What was not sent, on host and GPU: none, of error feedback, of EControl, or of error feedback
// that keeps messages.
template <typename T>
class Residuals {
 public:
  // Of the elements [begin, end) of a bucket.
  Residuals(Dice& dice, const Table& table, std::int64_t begin, std::int64_t end)
      : kind_(dice.below(4)),
        error_(part(random_values<T>(dice, table, Values::finite), begin, end)),
        tracker_(part(random_values<T>(dice, table, Values::finite), begin, end)),
        eta_(12),
        sent_(table.blocks.size()),
        device_error_(error_),
        device_tracker_(tracker_),
        device_eta_(fill(dice, eta_)),
        device_sent_(fill(dice, sent_)),
        sent_next_(sent_.size(), T{7}),
        device_sent_next_(sent_next_) {}

  bool tracked() const { return kind_ == 2; }
  bool keeps_messages() const { return kind_ == 3; }
  Residual<T> host() const {
    if (kind_ == 0) return {};
    if (kind_ == 1) return {.error = error_.data()};
    if (keeps_messages()) return {.error = error_.data(), .sent = sent_.data()};
    return {.error = error_.data(), .tracker = tracker_.data(), .eta = eta_.data()};
  }
  Residual<T> device() {
    if (kind_ == 0) return {};
    if (kind_ == 1) return {.error = device_error_.data()};
    if (keeps_messages()) return {.error = device_error_.data(), .sent = device_sent_.data()};
    return {.error = device_error_.data(),
            .tracker = device_tracker_.data(),
            .eta = device_eta_.data()};
  }
  T* host_sent_next() { return keeps_messages() ? sent_next_.data() : nullptr; }
  T* device_sent_next() { return keeps_messages() ? device_sent_next_.data() : nullptr; }
  void expect_equal_sent() const {
    expect_equal("scales sent", device_sent_next_.host(), sent_next_);
  }

 private:
  static std::vector<T> part(const std::vector<T>& all, std::int64_t begin, std::int64_t end) {
    return {all.begin() + begin, all.begin() + end};
  }
  static const std::vector<T>& fill(Dice& dice, std::vector<T>& values) {
    for (T& value : values) value = static_cast<T>(dice.uniform());
    return values;
  }

  std::int64_t kind_;
  std::vector<T> error_;
  std::vector<T> tracker_;
  std::vector<T> eta_;
  std::vector<T> sent_;
  Device<T> device_error_;
  Device<T> device_tracker_;
  Device<T> device_eta_;
  Device<T> device_sent_;
  std::vector<T> sent_next_;
  Device<T> device_sent_next_;
};

template <typename T>
std::vector<char> compare_encode(Dice& dice, const Table& table) {
  std::vector<T> gradient = random_values<T>(dice, table, Values::any);
  Residuals<T> residuals(dice, table, 0, table.numel);
  std::vector<T> energy(2 * table.blocks.size());
  std::vector<char> payload(static_cast<std::size_t>(table.bytes));
  Device<Block> blocks(table.blocks);
  Device<T> device_gradient(gradient);
  Device<T> device_energy(energy);
  Device<char> device_payload(table.bytes);
  EncodeArgs<T> args{.blocks = table.blocks.data(),
                     .block_count = std::ssize(table.blocks),
                     .gradient = gradient.data(),
                     .residual = residuals.host(),
                     .payload = payload.data(),
                     .rounding_key = 0x123456789abcdef0u,
                     .energy = residuals.keeps_messages() ? nullptr : energy.data(),
                     .sent_next = residuals.host_sent_next()};
  host_kernels<T>().encode(args, nullptr);
  args.blocks = blocks.data();
  args.gradient = device_gradient.data();
  args.residual = residuals.device();
  args.payload = device_payload.data();
  args.energy = residuals.keeps_messages() ? nullptr : device_energy.data();
  args.sent_next = residuals.device_sent_next();
  cuda_kernels<T>().encode(args, nullptr);
  residuals.expect_equal_sent();
  expect_equal_payloads<T>("encode's payload", table, device_payload.host(), payload);
  expect_equal("encode's gradient", device_gradient.host(), gradient);
  expect_equal("encode's energy", device_energy.host(), energy);
  return payload;
}

// `bytes` are whole packed messages, one behind another, good ones or not.
template <typename T>
void compare_received(const Table& table, const std::vector<char>& bytes, std::int32_t ranks) {
  std::vector<T> gradient(static_cast<std::size_t>(table.numel), T{1});
  std::int32_t flag = INT32_MAX;
  Device<Block> blocks(table.blocks);
  Device<char> device_payload(bytes);
  Device<T> device_gradient(gradient);
  Device<std::int32_t> device_flag(std::vector<std::int32_t>{flag});
  const std::int64_t count = std::ssize(table.blocks);
  const DecodeArgs<T> on_host{.blocks = table.blocks.data(),
                              .block_count = count,
                              .payload = bytes.data(),
                              .stride = table.bytes,
                              .ranks = ranks,
                              .into = gradient.data()};
  const DecodeArgs<T> on_device{.blocks = blocks.data(),
                                .block_count = count,
                                .payload = device_payload.data(),
                                .stride = table.bytes,
                                .ranks = ranks,
                                .into = device_gradient.data()};
  host_kernels<T>().decode(on_host, nullptr);
  cuda_kernels<T>().decode(on_device, nullptr);
  expect_equal("decode's gradient", device_gradient.host(), gradient);
  host_kernels<T>().integrate(on_host, nullptr);
  cuda_kernels<T>().integrate(on_device, nullptr);
  expect_equal("integrate's gradient", device_gradient.host(), gradient);
  host_kernels<T>().first_non_finite({.blocks = table.blocks.data(),
                                      .block_count = count,
                                      .payload = bytes.data(),
                                      .stride = table.bytes,
                                      .ranks = ranks,
                                      .flag = &flag},
                                     nullptr);
  cuda_kernels<T>().first_non_finite({.blocks = blocks.data(),
                                      .block_count = count,
                                      .payload = device_payload.data(),
                                      .stride = table.bytes,
                                      .ranks = ranks,
                                      .flag = device_flag.data()},
                                     nullptr);
  expect_equal_flags("first_non_finite", device_flag, flag);
}

// Messages of several ranks, and the same with some bytes changed.
template <typename T>
void compare_all_received(Dice& dice, const Table& table) {
  const auto ranks = static_cast<std::int32_t>(1 + dice.below(4));
  std::vector<char> bytes;
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    const std::vector<char> message = compare_encode<T>(dice, table);
    bytes.insert(bytes.end(), message.begin(), message.end());
  }
  compare_received<T>(table, bytes, ranks);
  for (std::int64_t i = 0; i < std::ssize(bytes) / 50; ++i) {
    bytes[static_cast<std::size_t>(dice.below(std::ssize(bytes)))] =
        static_cast<char>(dice.below(256));
  }
  compare_received<T>(table, bytes, ranks);
}

template <typename T>
void compare_owner_reduce(Dice& dice) {
  constexpr std::int32_t sizes[] = {1, 2, 3, 4, 7, 64};
  const std::int32_t ranks = sizes[dice.below(6)];
  const OwnedChunk owned = random_chunk<T>(dice, random_format);
  const Table& chunk = owned.chunk;
  const std::int64_t stride = chunk.bytes + 3;
  std::vector<char> arrived(static_cast<std::size_t>(stride * ranks));
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    const Values kind = dice.below(ranks + 1) == 0 ? Values::any : Values::finite;
    std::vector<T> message = random_values<T>(dice, chunk, kind);
    host_kernels<T>().encode({.blocks = chunk.blocks.data(),
                              .block_count = std::ssize(chunk.blocks),
                              .gradient = message.data(),
                              .residual = {},
                              .payload = arrived.data() + rank * stride},
                             nullptr);
  }
  Residuals<T> residuals(dice, chunk, owned.begin, owned.end);
  const std::vector<T> all = random_values<T>(dice, chunk, Values::finite);
  const std::vector<T> tracker(all.begin() + owned.begin, all.begin() + owned.end);
  std::vector<T> next(tracker.size());
  std::vector<T> tracker_next(tracker.size());
  std::vector<char> reply(static_cast<std::size_t>(chunk.bytes));
  Device<Block> blocks(owned.bucket.blocks);
  Device<char> device_arrived(arrived);
  Device<T> device_tracker(tracker);
  Device<T> device_next(next);
  Device<T> device_tracker_next(tracker_next);
  Device<char> device_reply(chunk.bytes);
  const bool tracked = residuals.tracked();
  OwnerReduceArgs<T> args{.blocks = owned.blocks(),
                          .block_count = std::ssize(chunk.blocks),
                          .chunk_begin = owned.begin,
                          .payload_begin = owned.payload_begin,
                          .arrived = arrived.data(),
                          .stride = stride,
                          .ranks = ranks,
                          .residual = residuals.host(),
                          .owner_next = next.data(),
                          .mean_tracker = tracked ? tracker.data() : nullptr,
                          .mean_tracker_next = tracked ? tracker_next.data() : nullptr,
                          .reply = reply.data(),
                          .rounding_key = 77,
                          .sent_next = residuals.host_sent_next()};
  host_kernels<T>().owner_reduce(args, nullptr);
  args.blocks = blocks.data() + (owned.blocks() - owned.bucket.blocks.data());
  args.arrived = device_arrived.data();
  args.residual = residuals.device();
  args.owner_next = device_next.data();
  args.mean_tracker = tracked ? device_tracker.data() : nullptr;
  args.mean_tracker_next = tracked ? device_tracker_next.data() : nullptr;
  args.reply = device_reply.data();
  args.sent_next = residuals.device_sent_next();
  cuda_kernels<T>().owner_reduce(args, nullptr);
  residuals.expect_equal_sent();
  expect_equal_payloads<T>("owner_reduce's reply", chunk, device_reply.host(), reply);
  expect_equal("owner_reduce's residual", device_next.host(), next);
  expect_equal("owner_reduce's tracker", device_tracker_next.host(), tracker_next);
}

template <typename T>
void compare_form_error_and_average(Dice& dice, const Table& table) {
  std::vector<T> error = random_values<T>(dice, table, Values::finite);
  std::vector<T> momentum = random_values<T>(dice, table, Values::finite);
  std::vector<T> next(error.size(), T{7});
  std::vector<T> sent(table.blocks.size());
  for (T& scale : sent) scale = dice.below(3) == 0 ? T{0} : static_cast<T>(dice.uniform());
  Device<Block> blocks(table.blocks);
  Device<T> device_error(error), device_momentum(momentum), device_next(next), device_sent(sent);
  FormErrorArgs<T> form{.blocks = table.blocks.data(),
                        .block_count = std::ssize(table.blocks),
                        .error = error.data(),
                        .sent = sent.data()};
  host_kernels<T>().form_error(form, nullptr);
  form.blocks = blocks.data();
  form.error = device_error.data();
  form.sent = device_sent.data();
  cuda_kernels<T>().form_error(form, nullptr);
  expect_equal("form_error's error", device_error.host(), error);
  expect_equal("form_error's scales", device_sent.host(), sent);
  AverageArgs<T> average{.blocks = table.blocks.data(),
                         .block_count = std::ssize(table.blocks),
                         .gradient = error.data(),
                         .momentum = momentum.data(),
                         .momentum_next = next.data(),
                         .keep = static_cast<T>(0.9),
                         .share = static_cast<T>(0.1)};
  host_kernels<T>().average(average, nullptr);
  average.blocks = blocks.data();
  average.gradient = device_error.data();
  average.momentum = device_momentum.data();
  average.momentum_next = device_next.data();
  cuda_kernels<T>().average(average, nullptr);
  expect_equal("average's gradient", device_error.host(), error);
  expect_equal("average's momentum", device_next.host(), next);
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
  const std::vector<T> gradient = uniform_values<T>(dice, numel, -1);
  Device<StepSlice> device_slices(slices);
  Device<T> device_gradient(gradient);
  const std::vector<std::string> cases = rule_cases();
  const std::string& text = cases[static_cast<std::size_t>(dice.below(std::ssize(cases)))];
  std::vector<T> weights = uniform_values<T>(dice, numel, -1);
  // Of both signs but for the second and the third, of which some optimizers take a root.
  std::vector<T> state[max_states] = {uniform_values<T>(dice, numel, -1),
                                      uniform_values<T>(dice, numel, 0),
                                      uniform_values<T>(dice, numel, 0)};
  Device<T> device_weights(weights);
  Device<T> device_state[max_states] = {Device<T>(state[0]), Device<T>(state[1]),
                                        Device<T>(state[2])};
  const StepParameters parameters{
      .lr = 0.1, .gradient_scale = dice.uniform(), .committed_step = dice.below(1000)};
  with_rule(text, [&](auto rule, const auto& options) {
    using Rule = decltype(rule);
    const auto step = Rule::step(options, parameters);
    BucketView<T> bucket{slices.data(),
                         std::ssize(slices),
                         numel,
                         weights.data(),
                         gradient.data(),
                         {state[0].data(), state[1].data(), state[2].data()},
                         static_cast<int>(Rule::state(options).size())};
    host_optimizer_kernels<T>().template step<Rule>(bucket, step, nullptr);
    bucket.slices = device_slices.data();
    bucket.weights = device_weights.data();
    bucket.gradient = device_gradient.data();
    for (int k = 0; k < max_states; ++k) bucket.state[k] = device_state[k].data();
    cuda_optimizer_kernels<T>().template step<Rule>(bucket, step, nullptr);
  });
  expect_equal((text + ": weights").c_str(), device_weights.host(), weights);
  for (int k = 0; k < max_states; ++k) {
    expect_equal(fmt::format("{}: state {}", text, k).c_str(), device_state[k].host(), state[k]);
  }
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
      const Table table = random_table<T>(dice, random_format);
      compare_all_received<T>(dice, table);
      compare_owner_reduce<T>(dice);
      compare_form_error_and_average<T>(dice, table);
      compare_mean_and_check<T>(dice, table);
      compare_optimizers<T>(dice);
      compare_squared_norm<T>(dice);
      compare_low_rank<T>(dice);
    } catch (const std::exception& error) {
      throw std::runtime_error(fmt::format("{}, seed {}: {}", type, seed, error.what()));
    }
  }
  fmt::print("{}: {} random cases are equal on host and GPU, bit for bit\n", type, cases);
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
    if (numel <= largest) print_times(numel);
  }
  if (largest >= 335'000'000) print_low_rank_times();
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
