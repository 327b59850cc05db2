// Payloads of any bytes, and values of any bits, through the plain codecs.
//
// Input: which codec, the dtype, the number of values (2 bytes), then bytes of a payload and, read
// again as such, of the values.
#include <cmath>

#include "collectives/base/error.h"
#include "collectives/compression/codec/typed.h"
#include "tests/fuzz/codecs.h"

namespace thinwire {
namespace {

// Whether decoding gives finite values only. Decodes twice, which must give the same.
bool decodes_to_finite(const PlainCodec& codec, const at::Tensor& payload, std::int64_t count,
                       at::ScalarType dtype) {
  Exact into(count, dtype);
  Exact again(count, dtype);
  codec.decode_add(payload, 1, into.tensor);
  codec.decode_add(payload, 1, again.tensor);
  check(into.tensor.nbytes() == 0 ||
            std::memcmp(into.memory.get(), again.memory.get(), into.tensor.nbytes()) == 0,
        "decoding is a function");
  codec.decode_add(payload, -1, again.tensor);
  return with_type(dtype, [&]<typename T>(T) {
    bool finite = true;
    for (std::int64_t i = 0; i < count; ++i) {
      const T value = into.tensor.const_data_ptr<T>()[i];
      finite = finite && std::isfinite(value);
      if (std::isfinite(value)) {
        check(again.tensor.const_data_ptr<T>()[i] == 0, "what is subtracted is what was added");
      }
    }
    return finite;
  });
}

void try_input(const std::uint8_t* data, std::size_t size) {
  if (size < 4) return;
  const auto codecs = all_codecs();
  const PlainCodec& codec = codecs[data[0] % codecs.size()];
  const at::ScalarType dtype = data[1] % 2 == 0 ? at::kFloat : at::kDouble;
  const std::int64_t count = (data[2] | data[3] << 8) % 700;
  data += 4;
  size -= 4;

  Exact payload(codec.payload_bytes(count, dtype), at::kByte);
  payload.fill(data, size);
  const bool said = codec.finite(payload.tensor, count, dtype, 1);
  const bool is = decodes_to_finite(codec, payload.tensor, count, dtype);
  // A grid is judged by its ends, which the levels need not reach; those of a symmetric one may go
  // beyond, by one that no encoder writes.
  const Format format = codec.format(codec.block());
  const bool has_grid = format.coding == number_of<Quantize>;
  const bool may_go_beyond = has_grid && Quantize::grid_of(format) == Grid::symmetric;
  check(!is || said || has_grid, "finite() says what decoding shows");
  check(!said || is || may_go_beyond, "what finite() accepts decodes to finite values");

  // What is made of any values is well-formed, and says whether they were finite.
  Exact values(count, dtype);
  values.fill(data, size);
  codec.encode(values.tensor, payload.tensor, {.key = 9, .begin = 32});
  const bool coded_finite = codec.finite(payload.tensor, count, dtype, 1);
  check(coded_finite == decodes_to_finite(codec, payload.tensor, count, dtype),
        "finite() says what decoding shows of an encoder's payload");
  if (!reference::all_finite(values.tensor))
    check(!coded_finite, "values that are not finite are seen");
}

}  // namespace
}  // namespace thinwire

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  thinwire::try_input(data, size);
  return 0;
}
