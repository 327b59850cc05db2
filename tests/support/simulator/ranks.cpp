#include "tests/support/simulator/ranks.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/full_like.h>

#include <thread>

#include "collectives/base/error.h"

namespace thinwire::testing {
namespace {

// Host and device tensors that a task may still touch; kept until the rank is through.
using Kept = std::shared_ptr<std::vector<at::Tensor>>;

class HostViewWork final : public Work {
 public:
  HostViewWork(std::unique_ptr<Work> inner, const CudaApi& cuda, cudaStream_t stream,
               at::Tensor host, at::Tensor device)
      : Work(std::chrono::minutes(1)),
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
    cuda_check(cuda_, cuda_.stream_synchronize(stream_), "waiting for the copy");
  }

  std::int64_t bytes_sent() const override { return inner_->bytes_sent(); }

 private:
  std::unique_ptr<Work> inner_;
  const CudaApi& cuda_;
  cudaStream_t stream_;
  at::Tensor host_;
  at::Tensor device_;
};

class HostView final : public OperationCommunicator {
 public:
  HostView(Communicator& inner, const CudaApi& cuda, cudaStream_t stream, Kept kept)
      : OperationCommunicator(inner.rank(), inner.size(), inner.timeout()),
        inner_(inner),
        cuda_(cuda),
        stream_(stream),
        kept_(std::move(kept)) {}

  std::unique_ptr<Communicator> split(int color, int key) override {
    auto part = inner_.split(color, key);
    auto view = std::make_unique<HostView>(*part, cuda_, stream_, kept_);
    view->owned_ = std::move(part);
    return view;
  }

  void abort(const std::string& reason) override { inner_.abort(reason); }

 private:
  // Device memory with the bytes of `host`, once the caller's stream has copied them.
  at::Tensor upload(const at::Tensor& host) {
    const at::Tensor device = at::full_like(host, 99);
    const at::Tensor source = host.clone();
    kept_->insert(kept_->end(), {device, source});
    copy(device, source);
    return device;
  }

  void copy(const at::Tensor& device, const at::Tensor& source) {
    cuda_check(cuda_,
               cuda_.memcpy_async(device.data_ptr(), source.data_ptr(), source.nbytes(),
                                  cudaMemcpyHostToDevice, stream_),
               "copying to the device");
  }

  // Where `part` lies in `whole`, in bytes; -1: elsewhere.
  static std::ptrdiff_t place_in(const at::Tensor& whole, const at::Tensor& part) {
    const std::ptrdiff_t place =
        static_cast<char*>(part.data_ptr()) - static_cast<char*>(whole.data_ptr());
    return part.nbytes() > 0 && place >= 0 && place < static_cast<std::ptrdiff_t>(whole.nbytes())
               ? place
               : -1;
  }

  std::unique_ptr<Work> post(Operation call) override {
    const at::Tensor host = call.output;
    if (host.defined()) {
      const std::ptrdiff_t place = place_in(call.output, call.input);
      call.output = upload(host);
      kept_->push_back(host);
      if (place < 0) {
        call.input = upload(call.input);
      } else {
        call.input = call.output.view({-1}).narrow(
            0, place / static_cast<std::ptrdiff_t>(call.output.element_size()), call.input.numel());
      }
    }
    auto work = forward(inner_, call);
    return std::make_unique<HostViewWork>(std::move(work), cuda_, stream_, host, call.output);
  }

  std::unique_ptr<Communicator> owned_;
  Communicator& inner_;
  const CudaApi& cuda_;
  cudaStream_t stream_;
  Kept kept_;
};

}  // namespace

bool any_tensor(const at::Tensor&) {
  return true;
}

std::vector<std::string> run_on_devices(Simulator& simulator, int size, NcclOptions options,
                                        const std::function<void(const DeviceRank&)>& body) {
  const std::string id = make_nccl_id(simulator.nccl());
  options.is_device_tensor = &any_tensor;
  std::vector<std::string> errors(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, options, rank]() mutable {
      try {
        const CudaApi& cuda = simulator.cuda();
        cuda_check(cuda, cuda.set_device(rank), "cudaSetDevice");
        const Stream stream(cuda);
        options.stream = stream.get();
        const auto communicator =
            make_nccl_communicator(id, rank, size, options, simulator.nccl(), cuda);
        try {
          body({simulator, stream.get(), *communicator});
        } catch (const std::exception& error) {
          communicator->abort(error.what());
          throw;
        }
      } catch (const std::exception& error) {
        errors[static_cast<std::size_t>(rank)] = error.what();
        simulator.break_all();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

std::unique_ptr<Communicator> make_host_view(const DeviceRank& rank) {
  return std::make_unique<HostView>(rank.communicator, rank.simulator.cuda(), rank.stream,
                                    std::make_shared<std::vector<at::Tensor>>());
}

}  // namespace thinwire::testing
