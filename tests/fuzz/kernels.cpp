// Payloads of any bytes through the kernels, of every kind of vectors that is built in and that
// this machine has: what the codecs decode in plain code, and not a byte beside it.
//
// Input: which codec, the dtype and the number of messages, the number of values (2 bytes), then
// bytes of the messages.
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <limits>

#include "collectives/base/error.h"
#include "collectives/compression/codec/typed.h"
#include "collectives/compression/codings/list.h"
#include "collectives/compression/kernels/host.h"
#include "tests/fuzz/codecs.h"

namespace thinwire {
namespace {

enum class Edge { before, after };

// A tensor at the edge of its memory: a byte beside it, on that side, ends the process.
class Guarded {
 public:
  Guarded(std::int64_t count, at::ScalarType dtype, Edge edge) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t bytes = static_cast<std::size_t>(count) * at::elementSize(dtype);
    const std::size_t room = (bytes + page - 1) / page * page;
    bytes_ = room + 2 * page;
    memory_ =
        static_cast<char*>(mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    check(memory_ != MAP_FAILED, "memory");
    char* first = memory_ + page;
    check(room == 0 || mprotect(first, room, PROT_READ | PROT_WRITE) == 0, "memory");
    data = edge == Edge::before ? first : first + room - bytes;
    tensor = at::from_blob(data, {count}, at::TensorOptions(dtype));
  }
  ~Guarded() { munmap(memory_, bytes_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  char* data = nullptr;
  at::Tensor tensor;

 private:
  char* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

template <typename T>
std::vector<Block> blocks_of(const PlainCodec& codec, std::int64_t count) {
  std::vector<Block> blocks;
  std::int64_t payload = 0;
  for (std::int64_t begin = 0; begin < count; begin += codec.block()) {
    Block block;
    block.begin = begin;
    block.payload = payload;
    block.count = static_cast<std::int32_t>(std::min(codec.block(), count - begin));
    block.format = codec.format(block.count);
    payload += payload_bytes<T>(block.format, block.count);
    blocks.push_back(block);
  }
  return blocks;
}

template <typename T>
bool same(const at::Tensor& a, const at::Tensor& b) {
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    const T x = a.const_data_ptr<T>()[i];
    const T y = b.const_data_ptr<T>()[i];
    if (!(std::isnan(x) && std::isnan(y)) && std::memcmp(&x, &y, sizeof(T)) != 0) return false;
  }
  return true;
}

at::Tensor decoded_by(const PlainCodec& codec, const at::Tensor& payload, const at::Tensor& like) {
  at::Tensor values = at::zeros_like(like);
  codec.decode_add(payload, 1, values);
  return values;
}

template <typename T>
void try_messages(const PlainCodec& codec, std::int64_t count, std::int32_t ranks, Edge edge,
                  const std::uint8_t* data, std::size_t size) {
  const at::ScalarType dtype = c10::CppTypeToScalarType<T>::value;
  // A codec of block 1 is coded in blocks of any size.
  const std::vector<Block> blocks =
      codec.block() == 1 ? std::vector<Block>{{.count = static_cast<std::int32_t>(count),
                                               .format = codec.format(count)}}
                         : blocks_of<T>(codec, count);
  const auto block_count = static_cast<std::int64_t>(blocks.size());
  const std::int64_t stride = codec.payload_bytes(count, dtype);
  Guarded messages(stride * ranks, at::kByte, edge);
  if (messages.tensor.numel() > 0)
    std::memcpy(messages.data, data, std::min(size, messages.tensor.nbytes()));

  Exact expected(count, dtype);
  bool finite = true;
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    const at::Tensor message = messages.tensor.narrow(0, rank * stride, stride);
    codec.decode_add(message, 1, expected.tensor);
    finite = finite && codec.finite(message, count, dtype, ranks);
  }
  if (ranks > 1) expected.tensor.div_(ranks);
  const at::Tensor coded_reply = at::zeros({stride}, at::kByte);
  codec.encode(expected.tensor, coded_reply, {.key = 7});

  for (const auto& [target, run] : host_kernels_by_form<T>()) {
    const char* payload = messages.data;
    Guarded decoded(count, dtype, edge);
    run.decode({.blocks = blocks.data(),
                .block_count = block_count,
                .payload = payload,
                .stride = stride,
                .ranks = ranks,
                .into = decoded.tensor.template data_ptr<T>()},
               nullptr);
    check(same<T>(decoded.tensor, expected.tensor), "kernels decode what the codec does");
    std::int32_t flag = std::numeric_limits<std::int32_t>::max();
    run.first_non_finite({.blocks = blocks.data(),
                          .block_count = block_count,
                          .payload = payload,
                          .stride = stride,
                          .ranks = ranks,
                          .flag = &flag},
                         nullptr);
    check((flag == std::numeric_limits<std::int32_t>::max()) == finite,
          "kernels say what the codec says");
    Guarded sum(count, dtype, edge);
    sum.tensor.fill_(1);
    run.integrate({.blocks = blocks.data(),
                   .block_count = block_count,
                   .payload = payload,
                   .stride = stride,
                   .ranks = ranks,
                   .into = sum.tensor.template data_ptr<T>()},
                  nullptr);
    check(same<T>(sum.tensor, at::ones({count}, expected.tensor.options()).add_(expected.tensor)),
          "kernels add what the codec decodes");
    Guarded error(count, dtype, edge);
    error.tensor.zero_();
    for (const T* kept :
         {static_cast<const T*>(nullptr), error.tensor.template const_data_ptr<T>()}) {
      Guarded next(count, dtype, edge);
      Guarded reply(stride, at::kByte, edge);
      run.owner_reduce({.blocks = blocks.data(),
                        .block_count = block_count,
                        .arrived = payload,
                        .stride = stride,
                        .ranks = ranks,
                        .residual = {.error = kept},
                        .owner_next = next.tensor.template data_ptr<T>(),
                        .reply = reply.data,
                        .rounding_key = 7},
                       nullptr);
      if (kept == nullptr) check(same<T>(next.tensor, expected.tensor), "owners form the mean");
      check(same<T>(decoded_by(codec, reply.tensor, expected.tensor),
                    decoded_by(codec, coded_reply, expected.tensor)),
            "owners code the mean as the codec does");
    }
  }
}

void try_input(const std::uint8_t* data, std::size_t size) {
  if (size < 4) return;
  const auto codecs = all_codecs();
  const PlainCodec& codec = codecs[data[0] % codecs.size()];
  const std::int32_t ranks = 1 + data[1] / 2 % 3;
  const std::int64_t count = (data[2] | data[3] << 8) % 700;
  with_type(data[1] % 2 == 0 ? at::kFloat : at::kDouble, [&]<typename T>(T) {
    try_messages<T>(codec, count, ranks, data[1] & 64 ? Edge::before : Edge::after, data + 4,
                    size - 4);
  });
}

}  // namespace
}  // namespace thinwire

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  thinwire::try_input(data, size);
  return 0;
}
