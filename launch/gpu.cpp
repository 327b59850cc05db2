#include "launch/gpu.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <unistd.h>

#include <set>

#include "collectives/base/error.h"
#include "collectives/cuda/cuda_queue.h"
#include "collectives/staged.h"

#if THINWIRE_HAVE_NCCL
#include "collectives/nccl/nccl_communicator.h"
#endif

namespace thinwire {
namespace {

// libtorch's part for CUDA registers itself when it is loaded. It is not linked: it takes seconds,
// and most runs do not need it.
void load_libtorch_cuda() {
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr) return;
  throw Error(ExitCode::internal,
              fmt::format("libtorch's part for CUDA cannot be loaded: {}; install a torch wheel "
                          "with CUDA, or use --device cpu",
                          dlerror()));
}

// One device of the whole job: its host and its bus.
std::string identity_of(const CudaApi& cuda, int index) {
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  char bus[64] = {};
  cuda_check(cuda, cudaDeviceGetPCIBusId(bus, sizeof bus, index), "cudaDeviceGetPCIBusId");
  return fmt::format("{} {}", host, bus);
}

class CudaRank final : public GpuRank {
 public:
  CudaRank(const Device& device, SharePolicy policy, Communicator& host,
           std::shared_ptr<Meter> meter, std::function<std::string()> explain_stall)
      : device_(at::kCUDA, static_cast<at::DeviceIndex>(device.index)), cuda_(real_cuda_api()) {
    load_libtorch_cuda();
    cuda_check(cuda_, cuda_.set_device(device.index), "cudaSetDevice");
    const std::string identity = identity_of(cuda_, device.index);
    if (policy == SharePolicy::refuse) require_own_devices(host, identity);
    const auto identities = all_gather_text(host, identity);
    const bool shared = std::set(identities.begin(), identities.end()).size() < identities.size();
    stream_ = std::make_unique<Stream>(cuda_);
    const auto poll = [this] {
      if (poll_) poll_();
    };
    compute_ = make_cuda_queue(cuda_, nullptr, poll);
    // What the communication thread allocates through libtorch must belong to its stream: memory
    // freed on another one may still be in use there.
    const auto attach = [this] {
      c10::impl::VirtualGuardImpl(at::kCUDA).exchangeStream(c10::Stream(
          c10::Stream::UNSAFE, device_, reinterpret_cast<c10::StreamId>(stream_->get())));
    };
    communication_ = make_cuda_queue(cuda_, stream_->get(), poll, attach);
    if (shared) {
      stage_through(host, "host memory, because ranks share a device");
    } else {
      join(host, std::move(meter), std::move(explain_stall));
    }
    trainer_ = std::make_unique<TrainerDevice>(TrainerDevice{
        {*carrier_, *compute_, *communication_},
        // GradientBuckets refuses float64 on a GPU.
        {.for_float = cuda_kernels<float>(),
         .for_double = {},
         .low_rank_for_float = cuda_low_rank_kernels<float>(),
         .low_rank_for_double = {},
         .queue = communication_,
         .segment = 16 << 20,
         .permute_for_float = cuda_permute_kernels<float>(),
         .permute_for_double = {}},
        {.for_float = cuda_optimizer_kernels<float>(), .for_double = {}, .queue = compute_}});
  }

  at::Device device() const override { return device_; }
  const TrainerDevice& trainer_device() const override { return *trainer_; }
  std::string describe() const override { return carried_by_; }
  void abort(const std::string& reason) override { carrier_->abort(reason); }

 private:
  // `host` reports to the meter, and so does what is split off from it.
  void stage_through(Communicator& host, std::string why) {
    carrier_ = make_staged(host.split(0, host.rank()), *communication_);
    carried_by_ = std::move(why);
  }

#if THINWIRE_HAVE_NCCL
  void join(Communicator& host, std::shared_ptr<Meter> meter,
            std::function<std::string()> explain_stall) {
    nccl_ = real_nccl_api();
    const std::string id =
        broadcast_text(host, host.rank() == 0 ? make_nccl_id(nccl_) : std::string(), 0);
    NcclOptions options;
    options.timeout = host.timeout();
    options.stream = stream_->get();
    options.all_to_all = AllToAllPath::native_if_equal;
    options.explain_stall = std::move(explain_stall);
    auto group = make_nccl_communicator(id, host.rank(), host.size(), options, nccl_, cuda_);
    poll_ = [nccl = group.get()] { nccl->poll(); };
    carrier_ = make_metered(std::move(group), std::move(meter));
    int version = 0;
    nccl_.get_version(&version);
    carried_by_ = fmt::format("NCCL {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
  }

  NcclApi nccl_;
#else
  void join(Communicator& host, std::shared_ptr<Meter>, std::function<std::string()>) {
    stage_through(host, "host memory, because thinwire was built without NCCL");
  }
#endif

  at::Device device_;
  CudaApi cuda_;
  std::function<void()> poll_;  // throws when the group has failed
  std::unique_ptr<Stream> stream_;
  std::shared_ptr<Queue> compute_;
  std::shared_ptr<Queue> communication_;
  std::unique_ptr<Communicator> carrier_;
  std::unique_ptr<TrainerDevice> trainer_;
  std::string carried_by_;
};

}  // namespace

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // clears it
  return 0;
}

std::unique_ptr<GpuRank> make_gpu_rank(const Device& device, SharePolicy policy, Communicator& host,
                                       std::shared_ptr<Meter> meter,
                                       std::function<std::string()> explain_stall) {
  return std::make_unique<CudaRank>(device, policy, host, std::move(meter),
                                    std::move(explain_stall));
}

}  // namespace thinwire
