#include "collectives/cuda/cuda_queue.h"

#include "collectives/base/error.h"

namespace thinwire {
namespace {

class CudaMark final : public Queue::Mark {
 public:
  CudaMark(const CudaApi& api, StreamHandle stream) : event(api) { event.record(stream); }
  Event event;
};

class CudaQueue final : public Queue {
 public:
  CudaQueue(const CudaApi& api, StreamHandle stream, std::function<void()> poll,
            std::function<void()> attach)
      : api_(api), stream_(stream), poll_(std::move(poll)), attach_(std::move(attach)) {
    cuda_check(api, api.get_device(&device_), "cudaGetDevice");
  }

  void attach_thread() override {
    cuda_check(api_, api_.set_device(device_), "cudaSetDevice");
    attach_();
  }
  bool on_host() const override { return false; }
  Executor executor() const override { return stream_; }

  std::shared_ptr<const Mark> mark() override { return std::make_shared<CudaMark>(api_, stream_); }

  void wait_for(const Mark& mark, const std::source_location& where) override {
    const auto* event = dynamic_cast<const CudaMark*>(&mark);
    check(event != nullptr, "the mark is of a queue of the same kind");
    wait(api_, stream_, event->event, where);
  }

  void synchronize(Deadline deadline, const std::source_location& where) override {
    const CudaMark end(api_, stream_);
    const auto leave = [&] {
      poll_();
      if (Clock::now() < deadline) return;
      throw PeerLost(
          "the work of this step on the device did not end in time; a peer is missing, or raise "
          "--timeout");
    };
    poll_until_done(api_, end.event, leave, where);
    poll_();  // an abort lets the kernels run out: what they leave is no result
  }

  void copy(void* to, const void* from, std::size_t bytes) override {
    if (bytes == 0) return;
    cuda_check(api_, api_.memcpy_async(to, from, bytes, cudaMemcpyDefault, stream_),
               "cudaMemcpyAsync");
  }
  void fill(void* to, int byte, std::size_t bytes) override {
    if (bytes == 0) return;
    cuda_check(api_, api_.memset_async(to, byte, bytes, stream_), "cudaMemsetAsync");
  }
  std::shared_ptr<void> host_memory(std::size_t bytes) override {
    auto memory = std::make_shared<PinnedMemory>(api_, bytes);
    return {memory, memory->get()};
  }

 private:
  const CudaApi& api_;
  StreamHandle stream_;
  int device_ = 0;
  std::function<void()> poll_;
  std::function<void()> attach_;
};

}  // namespace

std::unique_ptr<Queue> make_cuda_queue(const CudaApi& api, StreamHandle stream,
                                       std::function<void()> poll, std::function<void()> attach) {
  return std::make_unique<CudaQueue>(api, stream, std::move(poll), std::move(attach));
}

}  // namespace thinwire
