// Values travel as they are: `none`, and what rides along with compressed slices.
//
// Payload: the values (T).
#ifndef THINWIRE_CODINGS_RAW_H
#define THINWIRE_CODINGS_RAW_H

#include "collectives/compression/kernels/format.h"

namespace thinwire {

struct Uncompressed {
  static constexpr bool keeps_messages = false;
  std::int64_t block_size() const { return 1; }
  Format format(std::int64_t) const { return {}; }
  template <typename T>
  static constexpr std::int64_t payload_bytes(const Format&, std::int64_t count) {
    return count * static_cast<std::int64_t>(sizeof(T));
  }
};

}  // namespace thinwire

#endif

#ifdef THINWIRE_CODING_WORDS
namespace thinwire {

template <>
struct Words<Uncompressed> : WordsByDefault<Uncompressed> {
  static constexpr std::array names = {"none"};
  static constexpr const char* help = "none";
  static constexpr std::array ways = {
      Way{FeedbackKind::none, ExchangeKind::all_reduce},
      Way{FeedbackKind::none, ExchangeKind::two_stage},
  };
  static Uncompressed read(ChoiceReader&) { return {}; }
  static std::string write(const Uncompressed&) { return "none"; }
  static std::string describe(const Uncompressed&) { return "uncompressed"; }
  static Loss loss(const Uncompressed&) { return Loss::nothing; }
};

}  // namespace thinwire
#endif

#ifdef THINWIRE_CODING_BODIES
THINWIRE_ROWS_BEGIN

template <typename T>
struct RawReader {
  const char* values;
  THINWIRE_BODY RawReader(const char* payload, const Format&) : values(payload) {}
  template <typename Place>
  THINWIRE_BODY Row<T> decoded(Place row) const {
    return load_packed<T>(values, row);
  }
};

template <typename T, typename Message>
THINWIRE_WHOLE_BODY void encode_raw(const Task<T>& task, Message message) {
  Messages<T, Message> messages(message, task.count);
  messages.in_one_pass([&](auto row, const Row<T>& m) {
    store_packed(task.payload, row, m);
    message.keep_unsent(row, m, m);
  });
  if (task.energy != nullptr) {
    once([&] { task.energy[0] = task.energy[1] = 0; });
  }
}

template <>
struct Bodies<Uncompressed> : BodiesByRows<RawReader> {
  template <typename T, typename Message>
  THINWIRE_BODY static void encode(const Task<T>& task, const Message& message) {
    encode_raw(task, message);
  }
};

THINWIRE_ROWS_END
#endif
