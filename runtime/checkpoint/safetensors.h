// The safetensors format (https://github.com/huggingface/safetensors): an 8-byte little-endian
// header length, a JSON header, raw little-endian data. What is written here, Python's
// `safetensors` reads, and the other way round.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace thinwire {

struct NamedTensor {
  std::string name;   // unique in its file
  at::Tensor tensor;  // any device and strides; float64/32/16, bfloat16, int64/32/16/8, uint8, bool
};

// A safetensors file in memory.
struct Safetensors {
  std::map<std::string, at::Tensor> tensors;    // contiguous, on the CPU
  std::map<std::string, std::string> metadata;  // without the checksums
};

// The bytes of a file. Beside `metadata` it holds each tensor's XXH3-64 as "xxh3:<name>".
// Throws `Bug` for a dtype that the format lacks and for a name that occurs twice.
std::string write_safetensors(const std::vector<NamedTensor>& tensors,
                              const std::map<std::string, std::string>& metadata);

// Trusts nothing: the header's length and form, offsets without overlap or hole, sizes equal to
// shape x dtype, and each tensor's checksum where the file has one. Throws `DataError` naming
// `place` (the file) and the tensor.
Safetensors read_safetensors(std::string_view bytes, const std::string& place);

}  // namespace thinwire
