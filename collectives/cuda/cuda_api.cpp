#include "collectives/cuda/cuda_api.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <thread>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

void announce(const CudaApi& api, const std::source_location& where) {
  if (api.about_to_wait != nullptr) api.about_to_wait(where.file_name(), where.line());
}

// For destructors: says what went wrong, and goes on.
void log_failure(const CudaApi& api, cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  std::fprintf(stderr, "thinwire: %s failed: %s\n", what, api.get_error_string(code));
}

}  // namespace

void cuda_check(const CudaApi& api, cudaError_t code, std::string_view what,
                const std::source_location& where) {
  if (code == cudaSuccess) return;
  throw Error(ExitCode::internal,
              fmt::format("{} failed: {} ({}:{}); see the driver's log, and whether the device is "
                          "there and has memory left (nvidia-smi)",
                          what, api.get_error_string(code), where.file_name(), where.line()));
}

Stream::Stream(const CudaApi& api) : api_(&api) {
  cuda_check(api, api.stream_create(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
}

Stream::~Stream() {
  if (stream_ != nullptr) log_failure(*api_, api_->stream_destroy(stream_), "cudaStreamDestroy");
}

Event::Event(const CudaApi& api) : api_(&api) {
  cuda_check(api, api.event_create(&event_, cudaEventDisableTiming), "cudaEventCreate");
}

Event::~Event() {
  if (event_ != nullptr) log_failure(*api_, api_->event_destroy(event_), "cudaEventDestroy");
}

void Event::record(cudaStream_t stream) {
  cuda_check(*api_, api_->event_record(event_, stream), "cudaEventRecord");
}

DeviceMemory::DeviceMemory(const CudaApi& api, std::size_t bytes) : api_(&api) {
  cuda_check(api, api.malloc(&data_, bytes), fmt::format("cudaMalloc of {} bytes", bytes));
}

DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr) log_failure(*api_, api_->free(data_), "cudaFree");
}

PinnedMemory::PinnedMemory(const CudaApi& api, std::size_t bytes) : api_(&api) {
  cuda_check(api, api.malloc_host(&data_, bytes), fmt::format("cudaMallocHost of {} bytes", bytes));
}

PinnedMemory::~PinnedMemory() {
  if (data_ != nullptr) log_failure(*api_, api_->free_host(data_), "cudaFreeHost");
}

void wait(const CudaApi& api, cudaStream_t stream, const Event& event,
          const std::source_location& where) {
  announce(api, where);
  cuda_check(api, api.stream_wait_event(stream, event.get(), 0), "cudaStreamWaitEvent", where);
}

void synchronize(const CudaApi& api, cudaStream_t stream, const std::source_location& where) {
  announce(api, where);
  cuda_check(api, api.stream_synchronize(stream), "cudaStreamSynchronize", where);
}

void synchronize(const CudaApi& api, const Event& event, const std::source_location& where) {
  announce(api, where);
  cuda_check(api, api.event_synchronize(event.get()), "cudaEventSynchronize", where);
}

bool is_done(const CudaApi& api, const Event& event, const std::source_location& where) {
  const cudaError_t code = api.event_query(event.get());
  if (code == cudaErrorNotReady) return false;
  cuda_check(api, code, "cudaEventQuery", where);
  return true;
}

void poll_until_done(const CudaApi& api, const Event& event, const std::function<void()>& between,
                     const std::source_location& where) {
  Backoff backoff;
  while (true) {
    between();
    announce(api, where);
    if (is_done(api, event, where)) return;
    backoff.pause();
  }
}

void Backoff::pause() {
  constexpr int kYields = 50;
  if (++pauses_ <= kYields) {
    std::this_thread::yield();
    return;
  }
  std::this_thread::sleep_for(std::chrono::microseconds(std::min(500, 10 * (pauses_ - kYields))));
}

}  // namespace thinwire
