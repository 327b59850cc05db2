#include "collectives/cuda/cuda_api.h"

namespace thinwire {

CudaApi real_cuda_api() {
  CudaApi api;
  api.set_device = &::cudaSetDevice;
  api.get_device = &::cudaGetDevice;
  api.get_device_count = &::cudaGetDeviceCount;
  api.stream_create = &::cudaStreamCreateWithFlags;
  api.stream_destroy = &::cudaStreamDestroy;
  api.stream_query = &::cudaStreamQuery;
  api.stream_synchronize = &::cudaStreamSynchronize;
  api.stream_wait_event = &::cudaStreamWaitEvent;
  api.event_create = &::cudaEventCreateWithFlags;
  api.event_destroy = &::cudaEventDestroy;
  api.event_record = &::cudaEventRecord;
  api.event_query = &::cudaEventQuery;
  api.event_synchronize = &::cudaEventSynchronize;
  api.malloc = &::cudaMalloc;
  api.malloc_host = &::cudaMallocHost;
  api.free = &::cudaFree;
  api.free_host = &::cudaFreeHost;
  api.memcpy_async = &::cudaMemcpyAsync;
  api.memset_async = &::cudaMemsetAsync;
  api.get_error_string = &::cudaGetErrorString;
  api.pointer_get_attributes = &::cudaPointerGetAttributes;
  return api;
}

}  // namespace thinwire
