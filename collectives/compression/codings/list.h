// The codings, each of which is one way to write a block: the kernels, the parser, the help, the
// table of valid combinations and the tests' tables follow from this list. To add one, write its
// file, and its name in the two places below.
//
// A coding's file has three parts. The first one is for everybody: a struct of its options, and how
// large its payloads are. The second one is for words.h: what people write and read. The third one
// is for kernels/bodies-inl.h, once for each kind of vectors and once for a GPU: how a block is
// written and read. So this file is included several times, with a macro that asks for a part.
//
// What the struct has besides its options, which have defaults:
//   keeps_messages      what is not sent follows from the message and one number of its payload
//                       (kernels.h: Residual::sent)
//   block_size()        how many elements are coded together; a tensor may be cut at multiples of
//                       it, and the payloads of the parts are the parts of the payload
//   format(count)       how a block of `count` values, at most block_size(), is coded; the list
//                       fills in Format::coding
//   payload_bytes<T>(format, count)
#include "collectives/compression/codings/cast.h"
#include "collectives/compression/codings/fp8.h"
#include "collectives/compression/codings/quantize.h"
#include "collectives/compression/codings/raw.h"
#include "collectives/compression/codings/sign.h"
#include "collectives/compression/codings/top_k.h"

#ifndef THINWIRE_CODINGS_LIST_H
#define THINWIRE_CODINGS_LIST_H

#include <cstdint>
#include <type_traits>

#include "collectives/compression/kernels/format.h"

namespace thinwire {

template <typename... C>
struct CodingList {};

// In the order of the help. Uncompressed is the first (Coding::raw).
using Codings = CodingList<  //
    Uncompressed,            //
    Sign,                    //
    Quantize,                //
    Cast,                    //
    Fp8,                     //
    TopK>;

// Stands for a coding where only its type matters.
template <typename C>
struct CodingType {
  using type = C;
};

// Calls body(CodingType<C>()) for the coding C of this number, and nothing for a held block.
template <typename... C, typename Body>
constexpr void with_coding_of(CodingList<C...>, Coding number, const Body& body) {
  int place = 0;
  (void)((place++ == static_cast<int>(number) ? (body(CodingType<C>()), true) : false) || ...);
}
template <typename Body>
constexpr void with_coding(Coding number, const Body& body) {
  with_coding_of(Codings(), number, body);
}

template <typename... C, typename Wanted>
constexpr Coding place_of(CodingList<C...>, CodingType<Wanted>) {
  int place = 0;
  (void)((std::is_same_v<C, Wanted> || (++place, false)) || ...);
  return static_cast<Coding>(place);
}
template <typename C>
constexpr Coding number_of = place_of(Codings(), CodingType<C>());
static_assert(number_of<Uncompressed> == Coding::raw);

// How a block of `count` values is coded by these options.
template <typename C>
Format format_of(const C& options, std::int64_t count) {
  Format format = options.format(count);
  format.coding = number_of<C>;
  return format;
}

// Bytes of the payload of `count` values.
template <typename T>
constexpr std::int64_t payload_bytes(const Format& format, std::int64_t count) {
  std::int64_t bytes = 0;
  if (count == 0) return bytes;
  with_coding(format.coding, [&](auto coding) {
    bytes = decltype(coding)::type::template payload_bytes<T>(format, count);
  });
  return bytes;
}

}  // namespace thinwire

#endif
