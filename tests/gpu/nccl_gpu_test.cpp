// The conformance suite over real NCCL: one rank for each GPU, at most 8. Prints "no GPU" and
// passes where there is none.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "collectives/base/error.h"
#include "collectives/nccl/nccl_communicator.h"
#include "tests/conformance/suite.h"
#include "tests/support/hang_watchdog.h"

namespace thinwire {
namespace {

using namespace std::chrono_literals;

bool any_tensor(const at::Tensor&) {
  return true;
}

// A tensor over device memory; only its pointer, size and dtype are used.
at::Tensor on_device(const DeviceMemory& memory, const at::Tensor& like) {
  return at::from_blob(memory.get(), {like.numel()}, like.options());
}

class HostViewWork final : public Work {
 public:
  HostViewWork(std::unique_ptr<Work> inner, const CudaApi& cuda, cudaStream_t stream,
               at::Tensor host, at::Tensor device)
      : Work(1min),
        inner_(std::move(inner)),
        cuda_(cuda),
        stream_(stream),
        host_(std::move(host)),
        device_(std::move(device)) {}

  using Work::wait;
  void wait(Deadline deadline) override {
    inner_->wait(deadline);
    if (!host_.defined()) return;
    cuda_check(cuda_,
               cuda_.memcpy_async(host_.data_ptr(), device_.data_ptr(), host_.nbytes(),
                                  cudaMemcpyDeviceToHost, stream_),
               "copying back");
    synchronize(cuda_, stream_);
  }
  std::int64_t bytes_sent() const override { return inner_->bytes_sent(); }

 private:
  std::unique_ptr<Work> inner_;
  const CudaApi& cuda_;
  cudaStream_t stream_;
  at::Tensor host_;
  at::Tensor device_;
};

// Operations on host tensors, by copies in device memory.
class HostView final : public OperationCommunicator {
 public:
  HostView(std::unique_ptr<Communicator> inner, const CudaApi& cuda, cudaStream_t stream)
      : OperationCommunicator(inner->rank(), inner->size(), inner->timeout()),
        inner_(std::move(inner)),
        cuda_(cuda),
        stream_(stream) {}

  std::unique_ptr<Communicator> split(int color, int key) override {
    return std::make_unique<HostView>(inner_->split(color, key), cuda_, stream_);
  }
  void abort(const std::string& reason) override { inner_->abort(reason); }

 private:
  at::Tensor upload(const at::Tensor& host) {
    kept_.emplace_back(cuda_, std::max<std::size_t>(1, host.nbytes()));
    const at::Tensor device = on_device(kept_.back(), host);
    cuda_check(cuda_,
               cuda_.memcpy_async(device.data_ptr(), host.const_data_ptr(), host.nbytes(),
                                  cudaMemcpyHostToDevice, stream_),
               "copying to the device");
    return device;
  }

  std::unique_ptr<Work> post(Operation call) override {
    const at::Tensor host = call.output;
    if (host.defined()) {
      const auto place =
          static_cast<char*>(call.input.data_ptr()) - static_cast<char*>(host.data_ptr());
      const bool inside = call.input.nbytes() > 0 && place >= 0 &&
                          place < static_cast<std::ptrdiff_t>(host.nbytes());
      call.output = upload(host);
      call.input =
          inside ? call.output.narrow(0, place / static_cast<std::ptrdiff_t>(host.element_size()),
                                      call.input.numel())
                 : upload(call.input);
    }
    auto work = forward(*inner_, call);
    return std::make_unique<HostViewWork>(std::move(work), cuda_, stream_, host, call.output);
  }

  std::vector<DeviceMemory> kept_;
  std::unique_ptr<Communicator> inner_;
  const CudaApi& cuda_;
  cudaStream_t stream_;
};

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? std::min(count, 8) : 0;
}

class RealNcclConformance
    : public ::testing::TestWithParam<std::tuple<testing::ConformanceTest, AllToAllPath>> {};

TEST_P(RealNcclConformance, Holds) {
  const auto& [test, all_to_all] = GetParam();
  const int size = device_count();
  if (size == 0) GTEST_SKIP() << "no GPU";
  if (test.run == testing::sums_are_formed_in_the_order_of_a_ring)
    GTEST_SKIP() << "NCCL promises no order";
  const CudaApi cuda = real_cuda_api();
  const NcclApi nccl = real_nccl_api();
  const std::string id = make_nccl_id(nccl);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank, run = test.run, path = all_to_all] {
      try {
        cuda_check(cuda, cuda.set_device(rank), "cudaSetDevice");
        const Stream stream(cuda);
        NcclOptions options;
        options.stream = stream.get();
        options.all_to_all = path;
        options.is_device_tensor = &any_tensor;
        HostView view(make_nccl_communicator(id, rank, size, options, nccl, cuda), cuda,
                      stream.get());
        run(view);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << rank << ": " << error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

INSTANTIATE_TEST_SUITE_P(Nccl, RealNcclConformance,
                         ::testing::Combine(::testing::ValuesIn(testing::kConformanceTests),
                                            ::testing::Values(AllToAllPath::send_receive,
                                                              AllToAllPath::native_if_equal)),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param).name) +
                                  (std::get<1>(test.param) == AllToAllPath::send_receive
                                       ? "ByMessages"
                                       : "Native");
                         });

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  if (thinwire::device_count() == 0) {
    std::puts("no GPU");
    return 0;
  }
  ::testing::InitGoogleTest(&argc, argv);
  auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
  listeners.Append(new thinwire::testing::HangWatchdog(std::chrono::seconds(120)));
  return RUN_ALL_TESTS();
}
