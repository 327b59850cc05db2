// Memory of a GPU, and comparisons with the host's.
#pragma once

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "tests/compression/kernel_cases.h"

namespace thinwire::on_gpu {

using namespace kernel_cases;

inline void check_cuda(cudaError_t code) {
  if (code != cudaSuccess) throw std::runtime_error(cudaGetErrorString(code));
}

// Zeros, or a copy of host memory, on the GPU.
template <typename T>
class Device {
 public:
  explicit Device(std::int64_t count) : count_(static_cast<std::size_t>(count)) {
    check_cuda(cudaMalloc(&data_, std::max<std::size_t>(1, count_ * sizeof(T))));
    check_cuda(cudaMemset(data_, 0, count_ * sizeof(T)));
  }
  explicit Device(const std::vector<T>& host) : Device(std::ssize(host)) {
    check_cuda(cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // Copies of `values` one behind another; over zeros, times would flatter.
  void repeat(const std::vector<T>& values) {
    for (std::size_t begin = 0; begin < count_; begin += values.size()) {
      check_cuda(cudaMemcpy(data() + begin, values.data(),
                            std::min(values.size(), count_ - begin) * sizeof(T),
                            cudaMemcpyHostToDevice));
    }
  }

  T* data() { return static_cast<T*>(data_); }
  // Waits for what runs.
  std::vector<T> host() const {
    std::vector<T> copy(count_);
    check_cuda(cudaMemcpy(copy.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return copy;
  }

 private:
  std::size_t count_;
  void* data_ = nullptr;
};

// Throws with the place where the two first differ.
template <typename T>
void expect_equal(const char* what, const std::vector<T>& device, const std::vector<T>& host) {
  const std::string found = difference(device.data(), host.data(), std::ssize(host));
  if (!found.empty()) throw std::runtime_error(fmt::format("{} differs: {}", what, found));
}

template <typename T>
void expect_equal_payloads(const char* what, const Table& table, const std::vector<char>& device,
                           const std::vector<char>& host) {
  const std::string found = payload_difference<T>(table, device.data(), host.data());
  if (!found.empty()) throw std::runtime_error(fmt::format("{} differs: {}", what, found));
}

inline void expect_equal_flags(const char* what, const Device<std::int32_t>& device,
                               std::int32_t host) {
  const std::int32_t found = device.host()[0];
  if (found != host) throw std::runtime_error(fmt::format("{}: {} and {}", what, found, host));
}

}  // namespace thinwire::on_gpu
