// Every combination of codec, feedback and exchange, by ranks that share a GPU, against the same on
// the host: estimates of every step and the state at the end are equal, bit for bit.
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <cmath>
#include <exception>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "collectives/compression/options.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/threads/thread_communicator.h"
#include "launch/gpu.h"

namespace thinwire {
namespace {

constexpr int kSize = 2;
constexpr std::int64_t kSteps = 6;
constexpr std::int64_t kPoisoned = 3;

std::vector<Bucket> make_buckets(at::Device device) {
  std::vector<Bucket> buckets(2);
  const std::vector<std::vector<std::int64_t>> shapes[] = {{{300, 70}, {33}, {64, 64}},
                                                           {{17, 19}, {5000, 3}}};
  for (int b = 0; b < 2; ++b) {
    buckets[b].index = b;
    std::int64_t offset = 0;
    for (const auto& shape : shapes[b]) {
      std::int64_t numel = 1;
      for (const std::int64_t n : shape) numel *= n;
      buckets[b].slices.push_back({.name = fmt::format("b{}s{}", b, buckets[b].slices.size()),
                                   .shape = shape,
                                   .offset = offset,
                                   .numel = numel});
      offset += (numel + 15) / 16 * 16;
    }
    buckets[b].gradient = at::zeros({offset}, at::TensorOptions().device(device));
  }
  return buckets;
}

at::Tensor gradient_of(const Bucket& bucket, std::int64_t step, int rank) {
  at::Tensor gradient = at::zeros({bucket.gradient.numel()});
  auto* values = gradient.data_ptr<float>();
  for (const Slice& slice : bucket.slices) {
    for (std::int64_t i = slice.offset; i < slice.offset + slice.numel; ++i) {
      values[i] = std::sin(static_cast<float>(1 + i * (3 + bucket.index) + step * 31 + rank * 7));
    }
  }
  if (step == kPoisoned && rank == 1 && bucket.index == 1) {
    values[5] = std::numeric_limits<float>::infinity();
  }
  return gradient;
}

class Snapshot final : public StateVisitor {
 public:
  void tensor(const StateEntry& entry) override { tensors.push_back(entry.tensor.cpu().clone()); }
  void counter(const std::string&, std::int64_t&) override {}
  std::vector<at::Tensor> tensors;
};

// What a rank's steps leave: estimates, and at the end the state.
std::vector<at::Tensor> steps(const CompressionOptions& options, const ReducerDevice& on,
                              Communicator& communicator, at::Device device) {
  std::vector<Bucket> buckets = make_buckets(device);
  const auto reducer = make_reducer(options, on);
  for (const Bucket& bucket : buckets) {
    reducer->prepare(bucket, communicator.rank(), communicator.size());
  }
  std::vector<at::Tensor> left;
  for (std::int64_t step = 0; step < kSteps; ++step) {
    for (Bucket& bucket : buckets) {
      bucket.gradient.copy_(gradient_of(bucket, step, communicator.rank()));
      reducer->stage(bucket, communicator, {.step = step, .seed = 1});
    }
    reducer->settle(communicator);
    bool finite = true;
    for (const Bucket& bucket : buckets) finite = !reducer->non_finite(bucket) && finite;
    if (finite == (step == kPoisoned)) throw std::runtime_error("the verdict is wrong");
    for (Bucket& bucket : buckets) {
      if (!finite) {
        reducer->rollback(bucket);
        continue;
      }
      reducer->commit(bucket);
      on.queue->synchronize(Clock::now() + std::chrono::minutes(1));
      left.push_back(bucket.gradient.cpu().clone());
    }
  }
  Snapshot snapshot;
  for (const Bucket& bucket : buckets) reducer->visit(bucket, snapshot);
  left.insert(left.end(), snapshot.tensors.begin(), snapshot.tensors.end());
  return left;
}

template <typename Body>
void each_rank(Body body) {
  auto group = make_thread_group(kSize);
  std::vector<std::thread> threads;
  std::vector<std::string> errors(kSize);
  for (auto& communicator : group) {
    threads.emplace_back([&] {
      try {
        body(*communicator);
      } catch (const std::exception& error) {
        errors[static_cast<std::size_t>(communicator->rank())] = error.what();
        communicator->abort(error.what());
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const std::string& error : errors) {
    if (!error.empty()) throw std::runtime_error(error);
  }
}

int run() {
  if (cuda_device_count() == 0) {
    fmt::print("no GPU\n");
    return 0;
  }
  int failures = 0;
  const std::vector<CompressionOptions> all = valid_combinations();
  for (const CompressionOptions& options : all) {
    const std::string where =
        fmt::format("codec {}, feedback {}, exchange {}", options.codec.index(),
                    static_cast<int>(options.feedback.kind), static_cast<int>(options.exchange));
    try {
      std::vector<at::Tensor> expected[kSize];
      each_rank([&](Communicator& communicator) {
        expected[communicator.rank()] = steps(options, {}, communicator, at::kCPU);
      });
      each_rank([&](Communicator& communicator) {
        const auto gpu = make_gpu_rank({.index = 0}, SharePolicy::share, communicator,
                                       std::make_shared<Meter>());
        const TrainerDevice& device = gpu->trainer_device();
        device.path.communication.attach_thread();
        const auto found = steps(options, device.reducer, device.path.communicator, gpu->device());
        const auto& wanted = expected[communicator.rank()];
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          if (found.size() == wanted.size() && at::equal(found[i], wanted[i])) continue;
          throw std::runtime_error(fmt::format("tensor {} of {} differs", i, wanted.size()));
        }
      });
    } catch (const std::exception& error) {
      ++failures;
      fmt::print("{}: {}\n", where, error.what());
    }
  }
  fmt::print("{} of {} combinations are equal on host and GPU, bit for bit\n",
             all.size() - static_cast<std::size_t>(failures), all.size());
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace thinwire

int main() {
  try {
    return thinwire::run();
  } catch (const std::exception& error) {
    fmt::print("FAILED: {}\n", error.what());
    return 1;
  }
}
