#include "tests/reference/codec.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "collectives/compression/codec/typed.h"
#include "tests/reference/codings.h"

namespace thinwire::reference {

void encode(const Codec& codec, const at::Tensor& values, at::Tensor payload,
            const DrawKey& draws) {
  with_type(values.scalar_type(), [&]<typename T>(T) {
    const T* from = values.const_data_ptr<T>();
    char* to = static_cast<char*>(payload.data_ptr());
    for_each_block<T>(codec, values.numel(), [&](const CodedBlock& block) {
      const std::vector<T> messages(from + block.begin, from + block.begin + block.count);
      const std::vector<char> bytes =
          encode_block(block.format, messages, draws.key, draws.begin + block.begin);
      std::copy(bytes.begin(), bytes.end(), to + block.payload);
    });
  });
}

void decode_add(const Codec& codec, const at::Tensor& payload, double weight, at::Tensor into) {
  with_type(into.scalar_type(), [&]<typename T>(T) {
    const char* from = static_cast<const char*>(payload.const_data_ptr());
    T* to = into.data_ptr<T>();
    for_each_block<T>(codec, into.numel(), [&](const CodedBlock& block) {
      const std::vector<T> decoded =
          decode_block<T>(block.format, block.count, from + block.payload);
      for (std::int64_t i = 0; i < block.count; ++i) {
        to[block.begin + i] += static_cast<T>(weight) * decoded[static_cast<std::size_t>(i)];
      }
    });
  });
}

bool finite(const Codec& codec, const at::Tensor& payload, std::int64_t count, at::ScalarType dtype,
            std::int64_t ranks) {
  return with_type(dtype, [&]<typename T>(T) {
    const char* from = static_cast<const char*>(payload.const_data_ptr());
    bool finite = true;
    for_each_block<T>(codec, count, [&](const CodedBlock& block) {
      finite = finite && finite_block<T>(block.format, block.count, from + block.payload, ranks);
    });
    return finite;
  });
}

PlainCodec::PlainCodec(const CodecOptions& options) : codec_(make_codec(options)) {
  if (!codec_) codec_ = make_uncompressed_codec();
}

bool all_finite(const at::Tensor& values) {
  return with_type(values.scalar_type(), [&]<typename T>(T) {
    const T* from = values.const_data_ptr<T>();
    return std::all_of(from, from + values.numel(), [](T x) { return std::isfinite(x); });
  });
}

}  // namespace thinwire::reference
