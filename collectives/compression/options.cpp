#include "collectives/compression/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "collectives/compression/codec/sign.h"
#include "collectives/compression/reducer/composed.h"
#include "collectives/compression/reducer/fused.h"
#include "runtime/base/error.h"
#include "runtime/base/spec.h"

namespace thinwire {
namespace {

const char* name(FeedbackKind feedback) {
  switch (feedback) {
    case FeedbackKind::automatic:
      return "auto";
    case FeedbackKind::none:
      return "none";
    case FeedbackKind::error_feedback:
      return "error_feedback";
    case FeedbackKind::econtrol:
      return "econtrol";
  }
  return "?";
}

const char* name(ExchangeKind exchange) {
  switch (exchange) {
    case ExchangeKind::automatic:
      return "auto";
    case ExchangeKind::all_reduce:
      return "all_reduce";
    case ExchangeKind::two_stage:
      return "two_stage";
    case ExchangeKind::all_gather:
      return "all_gather";
  }
  return "?";
}

struct Combination {
  std::size_t codec;  // index in CodecOptions
  FeedbackKind feedback;
  ExchangeKind exchange;
};

// The combinations that make sense. A codec's first row is its default.
constexpr std::size_t kUncompressed = 0;
constexpr std::size_t kSign = 1;
constexpr std::array kCombinations = {
    Combination{kUncompressed, FeedbackKind::none, ExchangeKind::all_reduce},
    Combination{kUncompressed, FeedbackKind::none, ExchangeKind::two_stage},
    Combination{kSign, FeedbackKind::error_feedback, ExchangeKind::two_stage},
    Combination{kSign, FeedbackKind::none, ExchangeKind::two_stage},
};
constexpr std::array kCodecNames = {"none", "sign", "quantize", "cast", "topk", "powersgd"};

std::string describe(const Combination& row) {
  return fmt::format("{} x {} x {}", kCodecNames[row.codec], name(row.feedback),
                     name(row.exchange));
}

std::unique_ptr<Codec> make_codec(const CodecOptions& options) {
  if (const auto* sign = std::get_if<Sign>(&options)) {
    if (sign->block < 8 || sign->block % 8 != 0) {
      throw UsageError(
          fmt::format("compressor sign: block is {}; give a multiple of 8 from 8 on", sign->block));
    }
    return std::make_unique<SignCodec>(sign->block);
  }
  return nullptr;
}

}  // namespace

CompressionOptions resolve(CompressionOptions options) {
  require_valid(options.policy);
  if (options.start_iter < 0) {
    throw UsageError(
        fmt::format("compression starts at step {}; give 0 or more", options.start_iter));
  }
  const auto fits = [&](const Combination& row) {
    return row.codec == options.codec.index() &&
           (options.feedback.kind == FeedbackKind::automatic ||
            options.feedback.kind == row.feedback) &&
           (options.exchange == ExchangeKind::automatic || options.exchange == row.exchange);
  };
  const auto found = std::find_if(kCombinations.begin(), kCombinations.end(), fits);
  if (found != kCombinations.end()) {
    options.feedback.kind = found->feedback;
    options.exchange = found->exchange;
    return options;
  }
  std::string valid;
  for (const Combination& row : kCombinations) {
    if (row.codec != options.codec.index()) continue;
    valid += (valid.empty() ? "" : ", ") + describe(row);
  }
  throw UsageError(fmt::format(
      "compressor x feedback x exchange {} makes no sense; with this compressor choose from {}",
      describe({options.codec.index(), options.feedback.kind, options.exchange}), valid));
}

CompressionOptions parse_compression(const std::string& compressor, const std::string& feedback,
                                     const std::string& exchange) {
  CompressionOptions options;
  Spec codec("--compressor", compressor);
  if (codec.name() == "none") {
    options.codec = Uncompressed{};
  } else if (codec.name() == "sign") {
    options.codec = Sign{.block = codec.integer("block", 1024, 8, std::int64_t{1} << 30)};
  } else {
    codec.unknown_name({"none", "sign"});
  }
  codec.done();

  Spec kind("--feedback", feedback);
  if (kind.name() == "auto") {
    options.feedback.kind = FeedbackKind::automatic;
  } else if (kind.name() == "none") {
    options.feedback.kind = FeedbackKind::none;
  } else if (kind.name() == "error_feedback") {
    options.feedback.kind = FeedbackKind::error_feedback;
  } else {
    kind.unknown_name({"auto", "none", "error_feedback"});
  }
  kind.done();

  Spec way("--exchange", exchange);
  std::vector<std::string> ways;
  for (const ExchangeKind one : {ExchangeKind::automatic, ExchangeKind::all_reduce,
                                 ExchangeKind::two_stage, ExchangeKind::all_gather}) {
    ways.push_back(name(one));
    if (way.name() == ways.back()) options.exchange = one;
  }
  if (std::find(ways.begin(), ways.end(), way.name()) == ways.end()) way.unknown_name(ways);
  way.done();
  make_codec(options.codec);  // throws for a block that cannot be
  return resolve(options);
}

std::unique_ptr<GradientReducer> make_reducer(const CompressionOptions& options,
                                              const ReducerLaunch& launch) {
  const CompressionOptions chosen = resolve(options);
  return std::make_unique<FusedReducer>(chosen, make_codec(chosen.codec), launch);
}

std::unique_ptr<GradientReducer> make_reference_reducer(const CompressionOptions& options) {
  const CompressionOptions chosen = resolve(options);
  return std::make_unique<ComposedReducer>(make_codec(chosen.codec), chosen.feedback.kind,
                                           chosen.exchange, chosen.policy);
}

}  // namespace thinwire
