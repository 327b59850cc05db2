#include "collectives/compression/parse.h"

#include <vector>

#include "collectives/compression/words.h"

namespace thinwire {
namespace {

template <typename... C>
CodecOptions read_one_of(CodingList<C...>, ChoiceReader& spec) {
  CodecOptions options;
  std::vector<std::string> known;
  bool found = false;
  const auto try_one = [&]<typename D>(CodingType<D>) {
    for (const char* name : Words<D>::names) {
      known.push_back(name);
      if (spec.name() != name) continue;
      options = Words<D>::read(spec);
      found = true;
    }
  };
  (try_one(CodingType<C>()), ...);
  if (!found) spec.unknown_name(known);
  return options;
}

CodecOptions parse_codec(const std::string& text) {
  ChoiceReader spec("--compressor", text);
  const CodecOptions options = read_one_of(Compressors(), spec);
  spec.done();
  return options;
}

FeedbackOptions parse_feedback(const std::string& text) {
  ChoiceReader spec("--feedback", text);
  FeedbackOptions options;
  if (spec.name() == "auto") {
    options.kind = FeedbackKind::automatic;
  } else if (spec.name() == "none") {
    options.kind = FeedbackKind::none;
  } else if (spec.name() == "error_feedback") {
    options.kind = FeedbackKind::error_feedback;
  } else if (spec.name() == "econtrol") {
    options.kind = FeedbackKind::econtrol;
    const std::string eta = spec.text("eta", "auto");
    if (eta != "auto") options.eta = parse_number("--feedback econtrol: 'eta'", eta, 0, 1);
    options.momentum = spec.number("momentum", 0, 0, 1);
  } else if (spec.name() == "ef21") {
    options = {FeedbackKind::econtrol, 0.0, spec.number("momentum", 0, 0, 1)};
  } else {
    spec.unknown_name({"auto", "none", "error_feedback", "econtrol", "ef21"});
  }
  spec.done();
  return options;
}

ExchangeKind parse_exchange(const std::string& text) {
  ChoiceReader spec("--exchange", text);
  spec.done();
  for (const auto kind : {ExchangeKind::automatic, ExchangeKind::all_reduce,
                          ExchangeKind::two_stage, ExchangeKind::all_gather}) {
    if (spec.name() == name(kind)) return kind;
  }
  spec.unknown_name({"auto", "all_reduce", "two_stage", "all_gather"});
}

template <typename... C>
std::string join_help(CodingList<C...>) {
  std::string help;
  ((help += (help.empty() ? "" : " | ") + std::string(Words<C>::help)), ...);
  return help;
}

}  // namespace

CompressionOptions parse_compression(const std::string& compressor, const std::string& feedback,
                                     const std::string& exchange) {
  CompressionOptions options;
  options.codec = parse_codec(compressor);
  options.feedback = parse_feedback(feedback);
  options.exchange = parse_exchange(exchange);
  return resolve(options);
}

std::string compressor_help() {
  return join_help(Compressors());
}

std::string words_of(const CodecOptions& codec) {
  return std::visit([](const auto& options) { return words_for(options).write(options); }, codec);
}

}  // namespace thinwire
