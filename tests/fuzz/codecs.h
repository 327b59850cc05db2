// Codecs of every kind with small odd blocks, and tensors that end where their memory ends.
#pragma once

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/reference/codec.h"

namespace thinwire {

using reference::PlainCodec;

inline std::vector<PlainCodec> all_codecs() {
  std::vector<PlainCodec> all;
  all.emplace_back(Uncompressed{});
  all.emplace_back(Sign{64});
  all.emplace_back(Sign{40, SignScale::rms});
  for (const auto grid : {Grid::max_min, Grid::symmetric}) {
    for (const int bits : {2, 5, 8}) {
      all.emplace_back(
          Quantize{bits, 96, grid, bits == 5 ? Rounding::nearest : Rounding::stochastic});
    }
  }
  all.emplace_back(Quantize{1, 32});
  all.emplace_back(Cast{Half::fp16});
  all.emplace_back(Cast{Half::bf16});
  all.emplace_back(TopK{0.05, 100});
  all.emplace_back(TopK{0.3, 64, Selection::exact});
  all.emplace_back(TopK{1.0, 33});
  all.emplace_back(Fp8{40});
  return all;
}

// A tensor of exactly so many bytes, so that a byte too far is seen.
struct Exact {
  Exact(std::int64_t count, at::ScalarType dtype)
      : memory(new char[static_cast<std::size_t>(count) * at::elementSize(dtype)]()),
        tensor(at::from_blob(memory.get(), {count}, at::TensorOptions(dtype))) {}
  void fill(const std::uint8_t* data, std::size_t size) {
    std::memcpy(memory.get(), data, std::min(size, tensor.nbytes()));
  }
  std::unique_ptr<char[]> memory;
  at::Tensor tensor;
};

}  // namespace thinwire
