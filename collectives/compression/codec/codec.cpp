#include "collectives/compression/codec/codec.h"

#include <type_traits>

#include "collectives/compression/codec/typed.h"
#include "collectives/compression/codings/list.h"
#include "collectives/compression/words.h"

namespace thinwire {
namespace {

template <typename C>
class CodecOf final : public Codec {
 public:
  explicit CodecOf(const C& options) : options_(options) { Words<C>::check(options); }
  std::string describe() const override { return Words<C>::describe(options_); }
  std::int64_t block() const override { return options_.block_size(); }
  Format format(std::int64_t count) const override { return format_of(options_, count); }
  std::optional<double> contraction() const override { return Words<C>::contraction(options_); }
  std::optional<Clamp> clamp() const override { return Words<C>::clamp(options_); }
  bool keeps_messages() const override { return C::keeps_messages; }

 private:
  C options_;
};

template <typename C, typename... D>
constexpr bool is_one_of(CodingList<D...>) {
  return (std::is_same_v<C, D> || ...);
}

}  // namespace

std::int64_t Codec::payload_bytes(std::int64_t count, at::ScalarType dtype) const {
  return with_type(dtype, [&]<typename T>(T) {
    const std::int64_t whole = count / block();
    return whole * thinwire::payload_bytes<T>(format(block()), block()) +
           thinwire::payload_bytes<T>(format(count % block()), count % block());
  });
}

std::unique_ptr<Codec> make_codec(const CodecOptions& options) {
  return std::visit(
      []<typename C>(const C& codec) -> std::unique_ptr<Codec> {
        if constexpr (is_one_of<C>(Codings()) && !std::is_same_v<C, Uncompressed>) {
          return std::make_unique<CodecOf<C>>(codec);
        } else {
          Words<C>::check(codec);
          return nullptr;
        }
      },
      options);
}

std::unique_ptr<Codec> make_uncompressed_codec() {
  return std::make_unique<CodecOf<Uncompressed>>(Uncompressed{});
}

}  // namespace thinwire
