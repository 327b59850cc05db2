#include "tests/support/simulator/simulator.h"

#include <fmt/format.h>

#include <atomic>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "tests/support/simulator/devices.h"
#include "tests/support/simulator/network.h"

namespace thinwire::testing {
namespace {

// Everything that is simulated.
struct Machine {
  explicit Machine(SimulatorOptions options) : devices(options), network(devices) {}
  Devices devices;
  Network network;
  std::set<WaitSite> sites;
  std::optional<WaitSite> ignored;
};

// What CUDA and NCCL keep per thread.
struct Thread {
  std::uint64_t machine = 0;  // which one this is about
  int device = -1;
  bool leave_out = false;  // the next wait
  int depth = 0;           // of ncclGroupStart
  std::vector<NcclCall> calls;
  ncclComm_t comm = nullptr;  // of the group's calls
  cudaStream_t stream = nullptr;
};

// C functions carry no context, so the machine that they act on is the process's.
std::unique_ptr<Machine> machine;
std::atomic<std::uint64_t> machines = 0;

Thread& thread() {
  thread_local Thread state;
  if (state.machine != machines.load()) {
    state = Thread{};
    state.machine = machines.load();
  }
  return state;
}

Devices& devices() {
  return machine->devices;
}

std::unique_lock<std::mutex> lock() {
  return std::unique_lock(machine->devices.mutex);
}

// Is the wait that comes now the one to leave out?
bool left_out() {
  return std::exchange(thread().leave_out, false);
}

void about_to_wait(const char* file, unsigned line) {
  const auto guard = lock();
  const WaitSite site{file, line};
  machine->sites.insert(site);
  thread().leave_out = machine->ignored == site;
}

cudaError_t set_device(int device) {
  const auto guard = lock();
  if (device < 0 || device >= devices().options.devices) return cudaErrorInvalidDevice;
  thread().device = device;
  return cudaSuccess;
}

cudaError_t get_device(int* device) {
  const auto guard = lock();
  *device = devices().device();
  return *device < 0 ? cudaErrorInvalidDevice : cudaSuccess;
}

cudaError_t get_device_count(int* count) {
  const auto guard = lock();
  *count = devices().options.devices;
  return cudaSuccess;
}

cudaError_t stream_create(cudaStream_t* made, unsigned) {
  const auto guard = lock();
  const int device = devices().device();
  if (device < 0) return cudaErrorInvalidDevice;
  auto stream = std::make_unique<SimulatedStream>();
  stream->device = device;
  stream->priority = devices().draw(1000);
  *made = reinterpret_cast<cudaStream_t>(stream.get());
  devices().streams[*made] = std::move(stream);
  return cudaSuccess;
}

cudaError_t stream_destroy(cudaStream_t handle) {
  const auto guard = lock();
  SimulatedStream* stream = devices().stream(handle);
  if (stream == nullptr || handle == nullptr) return cudaErrorInvalidResourceHandle;
  stream->destroyed = true;
  if (stream->tasks.empty()) devices().streams.erase(handle);
  return cudaSuccess;
}

// The end of what has been enqueued so far.
std::shared_ptr<Token> end_of(const SimulatedStream& stream) {
  if (!stream.tasks.empty()) return stream.tasks.back().done;
  auto token = std::make_shared<Token>();
  token->done = true;
  return token;
}

cudaError_t stream_query(cudaStream_t handle) {
  const auto guard = lock();
  SimulatedStream* stream = devices().stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  const auto token = end_of(*stream);
  devices().run_some();
  return token->done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t stream_synchronize(cudaStream_t handle) {
  auto guard = lock();
  if (left_out()) return cudaSuccess;
  SimulatedStream* stream = devices().stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  const auto token = end_of(*stream);
  const bool reached = devices().run_until(
      guard, [&] { return token->done; }, "cudaStreamSynchronize");
  return reached ? cudaSuccess : cudaErrorLaunchTimeout;
}

cudaError_t stream_wait_event(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
  const auto guard = lock();
  if (left_out()) return cudaSuccess;
  SimulatedStream* stream = devices().stream(handle);
  SimulatedEvent* event = devices().event(event_handle);
  if (stream == nullptr || event == nullptr) return cudaErrorInvalidResourceHandle;
  if (!event->recorded) return cudaSuccess;
  Task task;
  task.what = "a wait for an event";
  task.ready = [token = event->recorded] { return token->done; };
  devices().enqueue(*stream, std::move(task));
  return cudaSuccess;
}

cudaError_t event_create(cudaEvent_t* made, unsigned) {
  const auto guard = lock();
  const int device = devices().device();
  if (device < 0) return cudaErrorInvalidDevice;
  auto event = std::make_unique<SimulatedEvent>();
  event->device = device;
  *made = reinterpret_cast<cudaEvent_t>(event.get());
  devices().events[*made] = std::move(event);
  return cudaSuccess;
}

cudaError_t event_destroy(cudaEvent_t handle) {
  const auto guard = lock();
  if (devices().event(handle) == nullptr) return cudaErrorInvalidResourceHandle;
  devices().events.erase(handle);
  return cudaSuccess;
}

cudaError_t event_record(cudaEvent_t event_handle, cudaStream_t handle) {
  const auto guard = lock();
  SimulatedStream* stream = devices().stream(handle);
  SimulatedEvent* event = devices().event(event_handle);
  if (stream == nullptr || event == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->device != event->device) {
    devices().fail("an event was recorded on a stream of another device");
    return cudaErrorInvalidResourceHandle;
  }
  Task task;
  task.what = "an event's record";
  event->recorded = task.done;
  devices().enqueue(*stream, std::move(task));
  return cudaSuccess;
}

cudaError_t event_query(cudaEvent_t handle) {
  const auto guard = lock();
  if (left_out()) return cudaSuccess;
  SimulatedEvent* event = devices().event(handle);
  if (event == nullptr) return cudaErrorInvalidResourceHandle;
  const auto token = event->recorded;
  devices().run_some();
  return !token || token->done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t event_synchronize(cudaEvent_t handle) {
  auto guard = lock();
  if (left_out()) return cudaSuccess;
  SimulatedEvent* event = devices().event(handle);
  if (event == nullptr) return cudaErrorInvalidResourceHandle;
  const auto token = event->recorded;
  const bool reached = devices().run_until(
      guard, [&] { return !token || token->done; }, "cudaEventSynchronize");
  return reached ? cudaSuccess : cudaErrorLaunchTimeout;
}

cudaError_t allocate(std::map<void*, std::vector<char>>& memory, void** made, std::size_t bytes) {
  if (devices().device() < 0) return cudaErrorInvalidDevice;
  std::vector<char> block(std::max<std::size_t>(bytes, 1), '\xff');
  *made = block.data();
  memory[*made] = std::move(block);
  return cudaSuccess;
}

cudaError_t release(std::map<void*, std::vector<char>>& memory, void* data) {
  if (data == nullptr) return cudaSuccess;
  const auto found = memory.find(data);
  if (found == memory.end()) {
    devices().fail("memory was freed that was not allocated (any more)");
    return cudaErrorInvalidValue;
  }
  devices().freed.push_back(std::move(found->second));
  memory.erase(found);
  return cudaSuccess;
}

cudaError_t cuda_malloc(void** made, std::size_t bytes) {
  const auto guard = lock();
  return allocate(devices().device_memory, made, bytes);
}

cudaError_t cuda_free(void* data) {
  const auto guard = lock();
  return release(devices().device_memory, data);
}

cudaError_t malloc_host(void** made, std::size_t bytes) {
  const auto guard = lock();
  return allocate(devices().pinned_memory, made, bytes);
}

cudaError_t free_host(void* data) {
  const auto guard = lock();
  return release(devices().pinned_memory, data);
}

cudaError_t memcpy_async(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                         cudaStream_t handle) {
  const auto guard = lock();
  SimulatedStream* stream = devices().stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  Task task;
  task.what = fmt::format("a copy of {} bytes", bytes);
  task.run = [=] {
    if (bytes > 0) std::memmove(to, from, bytes);
  };
  task.reads = {{from, bytes}};
  task.writes = {{to, bytes}};
  devices().enqueue(*stream, std::move(task));
  return cudaSuccess;
}

cudaError_t memset_async(void* to, int value, std::size_t bytes, cudaStream_t handle) {
  const auto guard = lock();
  SimulatedStream* stream = devices().stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  Task task;
  task.what = fmt::format("a fill of {} bytes", bytes);
  task.run = [=] {
    if (bytes > 0) std::memset(to, value, bytes);
  };
  task.writes = {{to, bytes}};
  devices().enqueue(*stream, std::move(task));
  return cudaSuccess;
}

const char* cuda_error_string(cudaError_t code) {
  switch (code) {
    case cudaSuccess:
      return "no error";
    case cudaErrorNotReady:
      return "not ready (simulated)";
    case cudaErrorLaunchTimeout:
      return "nothing can run (simulated)";
    case cudaErrorInvalidDevice:
      return "no such device (simulated)";
    default:
      return "invalid handle or value (simulated)";
  }
}

cudaError_t pointer_get_attributes(cudaPointerAttributes* attributes, const void* data) {
  const auto guard = lock();
  const auto within = [&](const auto& memory) {
    const auto* at = static_cast<const char*>(data);
    for (const auto& [start, block] : memory) {
      if (at >= block.data() && at < block.data() + block.size()) return true;
    }
    return false;
  };
  *attributes = {};
  attributes->type = within(devices().device_memory)   ? cudaMemoryTypeDevice
                     : within(devices().pinned_memory) ? cudaMemoryTypeHost
                                                       : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}

ncclResult_t get_unique_id(ncclUniqueId* id) {
  const auto guard = lock();
  *id = machine->network.unique_id();
  return ncclSuccess;
}

ncclResult_t comm_init_rank_config(ncclComm_t* comm, int size, ncclUniqueId id, int rank,
                                   ncclConfig_t* config) {
  const auto guard = lock();
  return machine->network.init(comm, size, id, rank, config);
}

ncclResult_t comm_split(ncclComm_t comm, int color, int key, ncclComm_t* made, ncclConfig_t*) {
  const auto guard = lock();
  return machine->network.split(comm, color, key, made);
}

ncclResult_t comm_count(ncclComm_t handle, int* count) {
  const auto guard = lock();
  const SimulatedComm* comm = machine->network.idle(handle, "ncclCommCount");
  if (comm == nullptr) return ncclInvalidArgument;
  *count = comm->group->size;
  return ncclSuccess;
}

ncclResult_t comm_user_rank(ncclComm_t handle, int* rank) {
  const auto guard = lock();
  const SimulatedComm* comm = machine->network.idle(handle, "ncclCommUserRank");
  if (comm == nullptr) return ncclInvalidArgument;
  *rank = comm->rank;
  return ncclSuccess;
}

ncclResult_t comm_get_async_error(ncclComm_t comm, ncclResult_t* state) {
  const auto guard = lock();
  return machine->network.async_error(comm, state);
}

ncclResult_t comm_finalize(ncclComm_t comm) {
  const auto guard = lock();
  return machine->network.finalize(comm);
}

ncclResult_t comm_destroy(ncclComm_t comm) {
  const auto guard = lock();
  return machine->network.destroy(comm);
}

ncclResult_t comm_abort(ncclComm_t comm) {
  const auto guard = lock();
  return machine->network.abort(comm);
}

ncclResult_t group_start() {
  ++thread().depth;
  return ncclSuccess;
}

ncclResult_t group_end() {
  const auto guard = lock();
  Thread& here = thread();
  if (here.depth == 0) {
    devices().fail("ncclGroupEnd without ncclGroupStart");
    return ncclInvalidUsage;
  }
  if (--here.depth > 0 || here.calls.empty()) return ncclSuccess;
  SimulatedComm* comm = machine->network.idle(here.comm, "ncclGroupEnd");
  if (comm == nullptr) return ncclInvalidArgument;
  return machine->network.issue(*comm, std::exchange(here.calls, {}), here.stream);
}

ncclResult_t issue(NcclCall call, ncclComm_t handle, cudaStream_t stream, const char* caller) {
  const auto guard = lock();
  SimulatedComm* comm = machine->network.idle(handle, caller);
  if (comm == nullptr) return ncclInvalidArgument;
  if (comm->error != ncclSuccess) return comm->error;
  const auto& refused = machine->network.refused_calls;
  if (const auto found = refused.find(comm->device); found != refused.end()) return found->second;
  Thread& here = thread();
  if (here.depth == 0) return machine->network.issue(*comm, {call}, stream);
  if (!here.calls.empty() && (here.comm != handle || here.stream != stream)) {
    devices().fail(
        "one group with two communicators or streams: the simulator knows no such thing");
    return ncclInvalidUsage;
  }
  here.comm = handle;
  here.stream = stream;
  here.calls.push_back(call);
  // A non-blocking communicator may say so in the middle of a group too.
  return devices().draw(4) == 0 ? ncclInProgress : ncclSuccess;
}

ncclResult_t all_reduce(const void* in, void* out, std::size_t count, ncclDataType_t type,
                        ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return issue({CallKind::all_reduce, in, out, count, type, op, 0}, comm, stream, "ncclAllReduce");
}

ncclResult_t reduce_scatter(const void* in, void* out, std::size_t count, ncclDataType_t type,
                            ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return issue({CallKind::reduce_scatter, in, out, count, type, op, 0}, comm, stream,
               "ncclReduceScatter");
}

ncclResult_t all_gather(const void* in, void* out, std::size_t count, ncclDataType_t type,
                        ncclComm_t comm, cudaStream_t stream) {
  return issue({CallKind::all_gather, in, out, count, type, ncclSum, 0}, comm, stream,
               "ncclAllGather");
}

ncclResult_t all_to_all(const void* in, void* out, std::size_t count, ncclDataType_t type,
                        ncclComm_t comm, cudaStream_t stream) {
  return issue({CallKind::all_to_all, in, out, count, type, ncclSum, 0}, comm, stream,
               "ncclAlltoAll");
}

ncclResult_t broadcast(const void* in, void* out, std::size_t count, ncclDataType_t type, int root,
                       ncclComm_t comm, cudaStream_t stream) {
  return issue({CallKind::broadcast, in, out, count, type, ncclSum, root}, comm, stream,
               "ncclBroadcast");
}

ncclResult_t reduce(const void* in, void* out, std::size_t count, ncclDataType_t type,
                    ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  return issue({CallKind::reduce, in, out, count, type, op, root}, comm, stream, "ncclReduce");
}

ncclResult_t send(const void* in, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                  cudaStream_t stream) {
  return issue({CallKind::send, in, nullptr, count, type, ncclSum, peer}, comm, stream, "ncclSend");
}

ncclResult_t receive(void* out, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                     cudaStream_t stream) {
  return issue({CallKind::receive, nullptr, out, count, type, ncclSum, peer}, comm, stream,
               "ncclRecv");
}

const char* nccl_error_string(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInvalidArgument:
      return "invalid argument";
    default:
      return "some error";
  }
}

const char* last_error(ncclComm_t) {
  return "simulated";
}

}  // namespace

int Devices::device() {
  const int device = thread().device;
  if (device < 0) fail("a thread that has set no device used one");
  return device;
}

Simulator::Simulator(SimulatorOptions options) {
  if (machine) throw std::logic_error("there is a simulator already");
  ++machines;
  machine = std::make_unique<Machine>(options);
  cuda_.set_device = &set_device;
  cuda_.get_device = &get_device;
  cuda_.get_device_count = &get_device_count;
  cuda_.stream_create = &stream_create;
  cuda_.stream_destroy = &stream_destroy;
  cuda_.stream_query = &stream_query;
  cuda_.stream_synchronize = &stream_synchronize;
  cuda_.stream_wait_event = &stream_wait_event;
  cuda_.event_create = &event_create;
  cuda_.event_destroy = &event_destroy;
  cuda_.event_record = &event_record;
  cuda_.event_query = &event_query;
  cuda_.event_synchronize = &event_synchronize;
  cuda_.malloc = &cuda_malloc;
  cuda_.free = &cuda_free;
  cuda_.malloc_host = &malloc_host;
  cuda_.free_host = &free_host;
  cuda_.memcpy_async = &memcpy_async;
  cuda_.memset_async = &memset_async;
  cuda_.get_error_string = &cuda_error_string;
  cuda_.pointer_get_attributes = &pointer_get_attributes;
  cuda_.about_to_wait = &about_to_wait;
  nccl_.get_unique_id = &get_unique_id;
  nccl_.comm_init_rank_config = &comm_init_rank_config;
  nccl_.comm_split = &comm_split;
  nccl_.comm_count = &comm_count;
  nccl_.comm_user_rank = &comm_user_rank;
  nccl_.comm_get_async_error = &comm_get_async_error;
  nccl_.comm_finalize = &comm_finalize;
  nccl_.comm_destroy = &comm_destroy;
  nccl_.comm_abort = &comm_abort;
  nccl_.all_reduce = &all_reduce;
  nccl_.reduce_scatter = &reduce_scatter;
  nccl_.all_gather = &all_gather;
  nccl_.all_to_all = &all_to_all;
  nccl_.broadcast = &broadcast;
  nccl_.reduce = &reduce;
  nccl_.send = &send;
  nccl_.recv = &receive;
  nccl_.group_start = &group_start;
  nccl_.group_end = &group_end;
  nccl_.get_error_string = &nccl_error_string;
  nccl_.get_last_error = &last_error;
}

Simulator::~Simulator() {
  machine.reset();
}

void Simulator::enqueue_kernel(cudaStream_t handle, std::function<void()> body) {
  const auto guard = lock();
  SimulatedStream* stream = devices().stream(handle);
  if (stream == nullptr) return;
  Task task;
  task.what = "a kernel";
  task.run = std::move(body);
  task.known = false;
  devices().enqueue(*stream, std::move(task));
}

void Simulator::enqueue_kernel(cudaStream_t handle, std::function<void()> body,
                               std::vector<Range> reads, std::vector<Range> writes) {
  const auto guard = lock();
  SimulatedStream* stream = devices().stream(handle);
  if (stream == nullptr) return;
  Task task;
  task.what = "a kernel";
  task.run = std::move(body);
  task.reads = std::move(reads);
  task.writes = std::move(writes);
  devices().enqueue(*stream, std::move(task));
}

void Simulator::ignore_wait(const WaitSite& site) {
  const auto guard = lock();
  machine->ignored = site;
}

std::vector<WaitSite> Simulator::wait_sites() const {
  const auto guard = lock();
  return {machine->sites.begin(), machine->sites.end()};
}

void Simulator::stall(int device) {
  const auto guard = lock();
  devices().stalled.insert(device);
}

void Simulator::break_communicators(int device, ncclResult_t error) {
  const auto guard = lock();
  machine->network.break_device(device, error);
}

void Simulator::refuse_communicators(int device, ncclResult_t error) {
  const auto guard = lock();
  machine->network.refused[device] = error;
}

void Simulator::refuse_calls(int device, ncclResult_t error) {
  const auto guard = lock();
  machine->network.refused_calls[device] = error;
}

void Simulator::run_one_nccl_kernel_at_a_time() {
  const auto guard = lock();
  machine->network.one_kernel_at_a_time = true;
}

void Simulator::break_all() {
  const auto guard = lock();
  for (int device = 0; device < devices().options.devices; ++device) {
    machine->network.break_device(device, ncclRemoteError);
    machine->network.refused[device] = ncclRemoteError;
  }
}

std::vector<std::string> Simulator::failures() const {
  const auto guard = lock();
  return devices().failures;
}

std::vector<std::string> Simulator::leaks() const {
  const auto guard = lock();
  std::vector<std::string> all = machine->network.leaks();
  for (const auto& [handle, stream] : devices().streams) {
    if (!stream->destroyed) all.push_back(fmt::format("a stream of device {}", stream->device));
  }
  for (const auto& [handle, event] : devices().events) {
    all.push_back(fmt::format("an event of device {}", event->device));
  }
  for (const auto& [data, block] : devices().device_memory) {
    all.push_back(fmt::format("{} bytes of device memory", block.size()));
  }
  for (const auto& [data, block] : devices().pinned_memory) {
    all.push_back(fmt::format("{} bytes of pinned memory", block.size()));
  }
  return all;
}

}  // namespace thinwire::testing
