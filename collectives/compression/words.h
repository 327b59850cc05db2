// What people write and read of each compressor: a coding's file has it, and so has a reducer's
// where it has a way of its own to code. Only what makes words of options includes this.
#pragma once

#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "collectives/base/text.h"
#include "collectives/compression/codec/codec.h"
#include "collectives/compression/options.h"

namespace thinwire {

// A feedback and an exchange that make sense together with a compressor.
struct Way {
  FeedbackKind feedback;
  ExchangeKind exchange;
};

// All ways of a coding whose mean may be coded again, and of one that loses most by it.
inline constexpr std::array every_way = {
    Way{FeedbackKind::error_feedback, ExchangeKind::two_stage},
    Way{FeedbackKind::error_feedback, ExchangeKind::all_gather},
    Way{FeedbackKind::econtrol, ExchangeKind::two_stage},
    Way{FeedbackKind::econtrol, ExchangeKind::all_gather},
    Way{FeedbackKind::none, ExchangeKind::two_stage},
    Way{FeedbackKind::none, ExchangeKind::all_gather},
};
inline constexpr std::array every_way_to_all_first = {
    Way{FeedbackKind::error_feedback, ExchangeKind::all_gather},
    Way{FeedbackKind::error_feedback, ExchangeKind::two_stage},
    Way{FeedbackKind::econtrol, ExchangeKind::all_gather},
    Way{FeedbackKind::econtrol, ExchangeKind::two_stage},
    Way{FeedbackKind::none, ExchangeKind::all_gather},
    Way{FeedbackKind::none, ExchangeKind::two_stage},
};

// One of a few words, and what it stands for; the first one is the default.
template <typename T>
struct Word {
  const char* word;
  T value;
};
template <typename T, std::size_t n>
T choose(ChoiceReader& spec, const char* key, const Word<T> (&words)[n]) {
  const std::string given = spec.text(key, words[0].word);
  std::string valid;
  for (const auto& [word, value] : words) {
    if (given == word) return value;
    if (!valid.empty()) valid += ", ";
    valid += word;
  }
  throw UsageError(fmt::format("--compressor {}: '{}' is '{}'; choose from {}", spec.name(), key,
                               printable(given), valid));
}
template <typename T, std::size_t n>
const char* word_of(const T& value, const Word<T> (&words)[n]) {
  for (const auto& [word, known] : words) {
    if (value == known) return word;
  }
  throw Bug("bug: an option has a value without a word");
}

// The words of a compressor: a specialisation for its options, with
//   names              what it is called
//   help               what may be written, in a line
//   ways               the valid combinations; the first one is the default
//   read(spec)         the options of what was written
//   write(options)     words that `read` makes the same options of
//   describe(options)  for people: "sign, one scale per 1024 values"
// and what of this it wants to say otherwise:
template <typename C>
struct WordsByDefault {
  // Throws `UsageError` for options that cannot be.
  static void check(const C&) {}
  // Throws `UsageError` for a feedback that cannot be, as residuals would grow without bound.
  static void check_feedback(const C&, const FeedbackOptions&) {}
  // As options.h and codec.h have it.
  static std::optional<std::string> divergence(const C&, const FeedbackOptions&) {
    return std::nullopt;
  }
  static std::optional<std::string> note(const C&, const FeedbackOptions&) { return std::nullopt; }
  static std::optional<double> contraction(const C&) { return std::nullopt; }
  static std::optional<Clamp> clamp(const C&) { return std::nullopt; }
  static Loss loss(const C&) { return Loss::most; }
};
template <typename C>
struct Words;

// The words of options, whatever they are of.
template <typename C>
constexpr Words<C> words_for(const C&) {
  return {};
}

}  // namespace thinwire

#define THINWIRE_CODING_WORDS
#include "collectives/compression/codings/list.h"
#include "collectives/compression/reducer/power_sgd_options.h"
#undef THINWIRE_CODING_WORDS
