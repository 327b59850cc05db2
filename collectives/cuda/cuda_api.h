// The part of the CUDA runtime that is used, as a table of function pointers, and small owners of
// what it hands out. Tests put a simulator behind the table.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <source_location>
#include <string_view>
#include <utility>

namespace thinwire {

// The CUDA runtime's functions, typed by the real header.
struct CudaApi {
  decltype(&::cudaSetDevice) set_device = nullptr;
  decltype(&::cudaGetDevice) get_device = nullptr;
  decltype(&::cudaGetDeviceCount) get_device_count = nullptr;
  decltype(&::cudaStreamCreateWithFlags) stream_create = nullptr;
  decltype(&::cudaStreamDestroy) stream_destroy = nullptr;
  decltype(&::cudaStreamQuery) stream_query = nullptr;
  decltype(&::cudaStreamSynchronize) stream_synchronize = nullptr;
  decltype(&::cudaStreamWaitEvent) stream_wait_event = nullptr;
  decltype(&::cudaEventCreateWithFlags) event_create = nullptr;
  decltype(&::cudaEventDestroy) event_destroy = nullptr;
  decltype(&::cudaEventRecord) event_record = nullptr;
  decltype(&::cudaEventQuery) event_query = nullptr;
  decltype(&::cudaEventSynchronize) event_synchronize = nullptr;
  // Spelled out: cuda_runtime.h adds overloads to these two.
  cudaError_t (*malloc)(void**, std::size_t) = nullptr;
  cudaError_t (*malloc_host)(void**, std::size_t) = nullptr;
  decltype(&::cudaFree) free = nullptr;
  decltype(&::cudaFreeHost) free_host = nullptr;
  decltype(&::cudaMemcpyAsync) memcpy_async = nullptr;
  decltype(&::cudaMemsetAsync) memset_async = nullptr;
  decltype(&::cudaGetErrorString) get_error_string = nullptr;
  decltype(&::cudaPointerGetAttributes) pointer_get_attributes = nullptr;

  // For tests: told of every wait right before it is made, by the functions below. Null otherwise.
  void (*about_to_wait)(const char* file, unsigned line) = nullptr;
};

// The table of the CUDA runtime that the program is linked with.
CudaApi real_cuda_api();

// Throws `Error` unless `code` is cudaSuccess. `what`: the call, as "cudaMalloc of 8 bytes".
void cuda_check(const CudaApi& api, cudaError_t code, std::string_view what,
                const std::source_location& where = std::source_location::current());

// The table given to any of these must outlive it. They belong to the device that is current when
// they are made; destructors never throw.

// A stream that does not synchronise with the default stream by itself.
class Stream {
 public:
  explicit Stream(const CudaApi& api);
  ~Stream();
  Stream(Stream&& other) noexcept : api_(other.api_), stream_(std::exchange(other.stream_, {})) {}
  Stream& operator=(Stream&&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  const CudaApi* api_;
  cudaStream_t stream_ = nullptr;
};

// A point in a stream, without time stamps.
class Event {
 public:
  explicit Event(const CudaApi& api);
  ~Event();
  Event(Event&& other) noexcept : api_(other.api_), event_(std::exchange(other.event_, {})) {}
  Event& operator=(Event&&) = delete;
  // The event is now the end of what has been enqueued on `stream` so far.
  void record(cudaStream_t stream);
  cudaEvent_t get() const { return event_; }

 private:
  const CudaApi* api_;
  cudaEvent_t event_ = nullptr;
};

// Memory of the device; uninitialised.
class DeviceMemory {
 public:
  DeviceMemory(const CudaApi& api, std::size_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept
      : api_(other.api_), data_(std::exchange(other.data_, nullptr)) {}
  DeviceMemory& operator=(DeviceMemory&&) = delete;
  void* get() const { return data_; }

 private:
  const CudaApi* api_;
  void* data_ = nullptr;
};

// Page-locked memory of the host: copies between it and a device do not block; uninitialised.
class PinnedMemory {
 public:
  PinnedMemory(const CudaApi& api, std::size_t bytes);
  ~PinnedMemory();
  PinnedMemory(PinnedMemory&& other) noexcept
      : api_(other.api_), data_(std::exchange(other.data_, nullptr)) {}
  PinnedMemory& operator=(PinnedMemory&&) = delete;
  void* get() const { return data_; }

 private:
  const CudaApi* api_;
  void* data_ = nullptr;
};

// Whether the work before `event` is done: a look, not a wait. Throws `Error` where it failed.
bool is_done(const CudaApi& api, const Event& event,
             const std::source_location& where = std::source_location::current());

// Every wait on a stream or an event goes through one of the following, which announce the place
// of the call (`about_to_wait`): the simulator lists those places and leaves one out.

// What is enqueued on `stream` from now on runs after the work that `event` was last recorded
// behind. Does not block the host.
void wait(const CudaApi& api, cudaStream_t stream, const Event& event,
          const std::source_location& where = std::source_location::current());

// Blocks the host until `stream`, or the work before `event`, is done.
void synchronize(const CudaApi& api, cudaStream_t stream,
                 const std::source_location& where = std::source_location::current());
void synchronize(const CudaApi& api, const Event& event,
                 const std::source_location& where = std::source_location::current());

// Waits on the host until the work before `event` is done, with yields and then short sleeps, and
// calls `between` before each look: it leaves by throwing, at a deadline or on an abort.
void poll_until_done(const CudaApi& api, const Event& event, const std::function<void()>& between,
                     const std::source_location& where = std::source_location::current());

// The steps of a polite wait: first yields, then sleeps of up to half a millisecond.
class Backoff {
 public:
  void pause();

 private:
  int pauses_ = 0;
};

}  // namespace thinwire
