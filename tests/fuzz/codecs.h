// Codecs of every kind with small odd blocks, and tensors that end where their memory ends.
#pragma once

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "collectives/compression/codec/cast.h"
#include "collectives/compression/codec/identity.h"
#include "collectives/compression/codec/quantize.h"
#include "collectives/compression/codec/sign.h"
#include "collectives/compression/codec/top_k.h"

namespace thinwire {

inline std::vector<std::unique_ptr<Codec>> all_codecs() {
  std::vector<std::unique_ptr<Codec>> all;
  all.push_back(std::make_unique<IdentityCodec>());
  all.push_back(std::make_unique<SignCodec>(64));
  all.push_back(std::make_unique<SignCodec>(40, SignScale::rms));
  for (const auto grid : {Grid::max_min, Grid::symmetric}) {
    for (const int bits : {2, 5, 8}) {
      all.push_back(std::make_unique<QuantizeCodec>(
          Quantize{bits, 96, grid, bits == 5 ? Rounding::nearest : Rounding::stochastic}));
    }
  }
  all.push_back(std::make_unique<QuantizeCodec>(Quantize{1, 32}));
  all.push_back(std::make_unique<CastCodec>(Cast{Half::fp16}));
  all.push_back(std::make_unique<CastCodec>(Cast{Half::bf16}));
  all.push_back(std::make_unique<TopKCodec>(TopK{0.05, 100}));
  all.push_back(std::make_unique<TopKCodec>(TopK{0.3, 64, Selection::exact}));
  all.push_back(std::make_unique<TopKCodec>(TopK{1.0, 33}));
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
