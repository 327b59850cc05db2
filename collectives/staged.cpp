#include "collectives/staged.h"

#include <ATen/ops/empty.h>

#include "collectives/operation.h"

namespace thinwire {
namespace {

at::Tensor host_like(const at::Tensor& tensor) {
  return at::empty({tensor.numel()}, at::TensorOptions().dtype(tensor.scalar_type()));
}

class StagedWork final : public Work {
 public:
  StagedWork(std::chrono::milliseconds timeout, std::unique_ptr<Work> inner, at::Tensor host,
             at::Tensor device, Queue& queue)
      : Work(timeout),
        inner_(std::move(inner)),
        host_(std::move(host)),
        device_(std::move(device)),
        queue_(queue) {}

  using Work::wait;
  void wait(Deadline deadline) override {
    inner_->wait(deadline);
    if (!host_.defined()) return;
    queue_.copy(device_.data_ptr(), host_.const_data_ptr(), host_.nbytes());
    queue_.synchronize(deadline);
    host_.reset();
  }
  std::int64_t bytes_sent() const override { return inner_->bytes_sent(); }

 private:
  std::unique_ptr<Work> inner_;
  at::Tensor host_;
  at::Tensor device_;
  Queue& queue_;
};

class StagedCommunicator final : public OperationCommunicator {
 public:
  StagedCommunicator(std::unique_ptr<Communicator> inner, Queue& queue)
      : OperationCommunicator(inner->rank(), inner->size(), inner->timeout()),
        inner_(std::move(inner)),
        queue_(queue) {}

  std::unique_ptr<Communicator> split(int color, int key) override {
    return make_staged(inner_->split(color, key), queue_);
  }
  void abort(const std::string& reason) override { inner_->abort(reason); }

 private:
  std::unique_ptr<Work> post(Operation call) override {
    if (!call.input.defined()) {
      return std::make_unique<StagedWork>(timeout(), forward(*inner_, call), at::Tensor(),
                                          at::Tensor(), queue_);
    }
    const at::Tensor device_output = call.output;
    const bool in_place = call.output.data_ptr() == call.input.data_ptr() &&
                          call.output.numel() == call.input.numel();
    at::Tensor input = host_like(call.input);
    queue_.copy(input.data_ptr(), call.input.const_data_ptr(), call.input.nbytes());
    queue_.synchronize(Clock::now() + timeout());
    call.input = input;
    call.output = in_place ? input : host_like(call.output);
    const at::Tensor host_output = call.output;
    return std::make_unique<StagedWork>(timeout(), forward(*inner_, call), host_output,
                                        device_output, queue_);
  }

  std::unique_ptr<Communicator> inner_;
  Queue& queue_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged(std::unique_ptr<Communicator> inner, Queue& queue) {
  return std::make_unique<StagedCommunicator>(std::move(inner), queue);
}

}  // namespace thinwire
