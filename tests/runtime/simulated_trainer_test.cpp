// Training over NCCL on simulated devices.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>

#include "collectives/cuda/cuda_queue.h"
#include "collectives/staged.h"
#include "collectives/threads/thread_communicator.h"
#include "examples/models/initialize.h"
#include "examples/models/models.h"
#include "runtime/data/load.h"
#include "runtime/trainer/trainer.h"
#include "tests/runtime/simulated_device.h"
#include "tests/runtime/step_scenario.h"
#include "tests/support/simulator/ranks.h"

namespace thinwire {
namespace {

using testing::DeviceRank;
using testing::KernelsOn;
using testing::Simulator;

class Silence final : public TrainerObserver {
 public:
  void on_line(const std::string&) override {}
  void on_step(const StepReport&) override {}
};

DataSplit data_for_tests() {
  return load_data("synthetic:samples=96,test_samples=32,size=8,classes=4,noise=0.5");
}

TrainOptions options_of(const std::string& compressor, const std::string& optimizer) {
  TrainOptions options;
  options.model = "mlp:hidden=24,16";
  options.compressor = compressor;
  options.optimizer = optimizer;
  options.lr = 0.01;
  options.clip_norm = 0.5;
  options.batch_size = 4;
  options.steps = 20;
  options.report_every = 7;
  options.bucket_mb = 0.002;
  options.check_every = 0;
  options.output = ::testing::TempDir() + "/simulated-trainer";
  return options;
}

// One rank's training. `before_forward` makes the weights readable for the host.
std::string train(Communicator& transport, const TrainOptions& options, const DataSplit& data,
                  const TrainerDevice* device, const std::function<void()>& before_forward) {
  Model model = make_model(options.model, data.train->sample_shape(), data.train->classes());
  initialize_parameters(*model.module, options.seed);
  const auto forward = model.forward;
  model.forward = [&](const at::Tensor& input) {
    before_forward();
    return forward(input);
  };
  Meter meter;
  Silence silence;
  PosixFileSystem files;
  Trainer trainer({.model = model,
                   .data = data,
                   .communicator = transport,
                   .meter = meter,
                   .files = files,
                   .observer = silence,
                   .device = device},
                  options);
  return trainer.run().parameters_hash;
}

std::string hash_over_threads(const TrainOptions& options, int size) {
  const DataSplit data = data_for_tests();
  std::string hash;
  run_ranks(size, [&](auto communicator) {
    const std::string mine = train(*communicator, options, data, nullptr, [] {});
    if (communicator->rank() == 0) hash = mine;
  });
  return hash;
}

enum class Payloads { over_nccl, staged_over_threads };

std::string hash_over_devices(const TrainOptions& options, int size, std::uint64_t seed,
                              Payloads payloads) {
  const DataSplit data = data_for_tests();
  auto host_group = make_thread_group(size);
  auto staged_group = make_thread_group(size);
  std::string hash;
  Simulator simulator({.devices = size, .seed = seed});
  const KernelsOn kernels(simulator);
  const auto errors = run_on_devices(simulator, size, {}, [&](const DeviceRank& self) {
    at::set_num_threads(1);
    const auto rank = static_cast<std::size_t>(self.rank());
    const CudaApi& cuda = self.simulator.cuda();
    const Stream stream(cuda);
    const std::shared_ptr<Queue> compute = make_cuda_queue(cuda, stream.get());
    const std::shared_ptr<Queue> communication =
        make_cuda_queue(cuda, self.stream, [&] { self.communicator.poll(); });
    const auto staged = make_staged(std::move(staged_group[rank]), *communication);
    Communicator& carrier =
        payloads == Payloads::over_nccl ? static_cast<Communicator&>(self.communicator) : *staged;
    const TrainerDevice device{{carrier, *compute, *communication},
                               kernels.reducer_launch(communication),
                               kernels.optimizer_device(compute)};
    const std::string mine =
        train(*host_group[rank], options, data, &device, [&] { synchronize(cuda, stream.get()); });
    if (rank == 0) hash = mine;
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "");
  for (const std::string& failure : simulator.failures()) ADD_FAILURE() << failure;
  for (const std::string& leak : simulator.leaks()) ADD_FAILURE() << "never freed: " << leak;
  return hash;
}

class SimulatedTrainer : public ::testing::TestWithParam<int> {
 protected:
  void TearDown() override {
    std::filesystem::remove_all(::testing::TempDir() + "/simulated-trainer");
  }
};

TEST_P(SimulatedTrainer, EndsWithTheParametersOfThreads) {
  at::set_num_threads(1);
  for (const char* optimizer :
       {"sgd:momentum=0.5", "adamw", "lion", "sgd:momentum=0.5,exchange=momentum",
        "onebit_adam:freeze_step=3,refresh_every=3", "onebit_adam"}) {
    const TrainOptions options = options_of("sign:block=64", optimizer);
    const std::string expected = hash_over_threads(options, GetParam());
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      EXPECT_EQ(hash_over_devices(options, GetParam(), seed, Payloads::over_nccl), expected)
          << optimizer << ", seed " << seed;
    }
  }
}

TEST_P(SimulatedTrainer, EndsWithTheParametersOfThreadsWhenThreadsCarryItsPayloads) {
  at::set_num_threads(1);
  for (const char* compressor : {"none", "sign"}) {
    const TrainOptions options = options_of(compressor, "sgd");
    EXPECT_EQ(hash_over_devices(options, GetParam(), 5, Payloads::staged_over_threads),
              hash_over_threads(options, GetParam()));
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, SimulatedTrainer, ::testing::Values(1, 2, 4));

TEST(SimulatedStep, HoldsInEveryLegalOrder) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const auto result = testing::step_scenario(seed, {});
    ASSERT_TRUE(result.problems.empty()) << "seed " << seed << ": " << result.problems.front();
  }
}

}  // namespace
}  // namespace thinwire
