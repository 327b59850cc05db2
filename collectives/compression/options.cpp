#include "collectives/compression/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "collectives/base/error.h"
#include "collectives/base/spec.h"
#include "collectives/base/text.h"
#include "collectives/compression/codec/cast.h"
#include "collectives/compression/codec/quantize.h"
#include "collectives/compression/codec/sign.h"
#include "collectives/compression/codec/top_k.h"
#include "collectives/compression/reducer/gradient_average.h"
#include "collectives/compression/reducer/pipelined.h"
#include "collectives/compression/reducer/power_sgd.h"

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

// Indices in CodecOptions.
constexpr std::size_t kUncompressed = 0;
constexpr std::size_t kSign = 1;
constexpr std::size_t kQuantize = 2;
constexpr std::size_t kCast = 3;
constexpr std::size_t kTopK = 4;
constexpr std::size_t kPowerSgd = 5;
constexpr std::array kCodecNames = {"none", "sign", "quantize", "cast", "topk", "powersgd"};

// The combinations that make sense. A codec's first row is its default.
constexpr std::array kCombinations = {
    Combination{kUncompressed, FeedbackKind::none, ExchangeKind::all_reduce},
    Combination{kUncompressed, FeedbackKind::none, ExchangeKind::two_stage},
    Combination{kSign, FeedbackKind::error_feedback, ExchangeKind::two_stage},
    Combination{kSign, FeedbackKind::error_feedback, ExchangeKind::all_gather},
    Combination{kSign, FeedbackKind::econtrol, ExchangeKind::two_stage},
    Combination{kSign, FeedbackKind::econtrol, ExchangeKind::all_gather},
    Combination{kSign, FeedbackKind::none, ExchangeKind::two_stage},
    Combination{kSign, FeedbackKind::none, ExchangeKind::all_gather},
    Combination{kQuantize, FeedbackKind::error_feedback, ExchangeKind::two_stage},
    Combination{kQuantize, FeedbackKind::error_feedback, ExchangeKind::all_gather},
    Combination{kQuantize, FeedbackKind::econtrol, ExchangeKind::two_stage},
    Combination{kQuantize, FeedbackKind::econtrol, ExchangeKind::all_gather},
    Combination{kQuantize, FeedbackKind::none, ExchangeKind::two_stage},
    Combination{kQuantize, FeedbackKind::none, ExchangeKind::all_gather},
    Combination{kCast, FeedbackKind::error_feedback, ExchangeKind::two_stage},
    Combination{kCast, FeedbackKind::none, ExchangeKind::two_stage},
    // Coding the mean of sparse messages again loses most of it, so messages go to all.
    Combination{kTopK, FeedbackKind::error_feedback, ExchangeKind::all_gather},
    Combination{kTopK, FeedbackKind::error_feedback, ExchangeKind::two_stage},
    Combination{kTopK, FeedbackKind::econtrol, ExchangeKind::all_gather},
    Combination{kTopK, FeedbackKind::econtrol, ExchangeKind::two_stage},
    Combination{kTopK, FeedbackKind::none, ExchangeKind::all_gather},
    Combination{kTopK, FeedbackKind::none, ExchangeKind::two_stage},
    Combination{kPowerSgd, FeedbackKind::error_feedback, ExchangeKind::all_reduce},
    Combination{kPowerSgd, FeedbackKind::none, ExchangeKind::all_reduce},
};

std::string describe(const Combination& row) {
  return fmt::format("{} x {} x {}", kCodecNames[row.codec], name(row.feedback),
                     name(row.exchange));
}

// One of a few words, as what it stands for.
template <typename T>
T choose(Spec& spec, const std::string& key, const std::vector<std::pair<std::string, T>>& words) {
  const std::string word = spec.text(key, words.front().first);
  std::string valid;
  for (const auto& [known, value] : words) {
    if (word == known) return value;
    if (!valid.empty()) valid += ", ";
    valid += known;
  }
  throw UsageError(fmt::format("--compressor {}: '{}' is '{}'; choose from {}", spec.name(), key,
                               printable(word), valid));
}

CodecOptions parse_codec(const std::string& text) {
  constexpr std::int64_t huge = std::int64_t{1} << 30;
  Spec spec("--compressor", text);
  CodecOptions options;
  if (spec.name() == "none") {
    options = Uncompressed{};
  } else if (spec.name() == "sign") {
    Sign sign;
    sign.block = spec.integer("block", sign.block, 8, huge);
    sign.scale = choose<SignScale>(spec, "scale", {{"l1", SignScale::l1}, {"rms", SignScale::rms}});
    options = sign;
  } else if (spec.name() == "quantize") {
    Quantize quantize;
    quantize.bits = static_cast<int>(spec.integer("bits", quantize.bits, 1, 8));
    quantize.block = spec.integer("block", quantize.block, 32, kLargestBlock);
    quantize.grid = choose<std::optional<Grid>>(
        spec, "grid",
        {{"auto", std::nullopt}, {"max_min", Grid::max_min}, {"symmetric", Grid::symmetric}});
    quantize.rounding = choose<Rounding>(
        spec, "rounding", {{"nearest", Rounding::nearest}, {"stochastic", Rounding::stochastic}});
    options = quantize;
  } else if (spec.name() == "fp16") {
    options = Cast{Half::fp16};
  } else if (spec.name() == "bf16") {
    options = Cast{Half::bf16};
  } else if (spec.name() == "topk") {
    TopK top_k;
    top_k.density = spec.number("density", top_k.density, 0, 1);
    top_k.block = spec.integer("block", top_k.block, 32, kLargestBlock);
    top_k.selection = choose<Selection>(
        spec, "select", {{"threshold", Selection::threshold}, {"exact", Selection::exact}});
    options = top_k;
  } else if (spec.name() == "powersgd") {
    PowerSgd power_sgd;
    const std::int64_t rank = spec.integer("rank", power_sgd.matrix_approximation_rank, 1, huge);
    power_sgd.matrix_approximation_rank = spec.integer("matrix_approximation_rank", rank, 1, huge);
    power_sgd.min_compression_rate =
        spec.number("min_compression_rate", power_sgd.min_compression_rate, 0, 1e9);
    power_sgd.warm_start = choose<bool>(
        spec, "warm_start", {{"true", true}, {"false", false}, {"1", true}, {"0", false}});
    power_sgd.orthogonalization_epsilon =
        spec.number("orthogonalization_epsilon", power_sgd.orthogonalization_epsilon, 0, 1);
    options = power_sgd;
  } else {
    spec.unknown_name({"none", "sign", "quantize", "fp16", "bf16", "topk", "powersgd"});
  }
  spec.done();
  return options;
}

FeedbackOptions parse_feedback(const std::string& text) {
  Spec spec("--feedback", text);
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
  Spec spec("--exchange", text);
  spec.done();
  for (const auto kind : {ExchangeKind::automatic, ExchangeKind::all_reduce,
                          ExchangeKind::two_stage, ExchangeKind::all_gather}) {
    if (spec.name() == name(kind)) return kind;
  }
  spec.unknown_name({"auto", "all_reduce", "two_stage", "all_gather"});
}

// A feedback sends its error again and again: it must shrink on the way. The error of a random bit
// is larger than the value, |C(x) - x|^2 > |x|^2 but for values that are the range's ends, and
// residuals double every few steps.
void check_contracts(const CompressionOptions& options) {
  const auto* quantize = std::get_if<Quantize>(&options.codec);
  if (quantize && quantize->bits == 1 && quantize->rounding == Rounding::stochastic &&
      options.feedback.kind != FeedbackKind::none) {
    throw UsageError(fmt::format(
        "compressor quantize: with 1 bit and stochastic rounding the residuals of {} grow without "
        "bound; give 2 bits or more, feedback none, or compressor sign",
        name(options.feedback.kind)));
  }
}

void require_no_average(const CompressionOptions& options) {
  check(options.feedback.momentum == 0, "averages of gradients are no reducer's; see Reduction");
}

}  // namespace

std::unique_ptr<Codec> make_codec(const CodecOptions& options) {
  if (const auto* sign = std::get_if<Sign>(&options)) {
    constexpr std::int64_t largest = std::int64_t{1} << 30;
    if (sign->block < 8 || sign->block % 8 != 0 || sign->block > largest) {
      throw UsageError(
          fmt::format("compressor sign: block is {}; give a multiple of 8 from 8 on, at most {}",
                      sign->block, largest));
    }
    return std::make_unique<SignCodec>(sign->block, sign->scale);
  }
  if (const auto* quantize = std::get_if<Quantize>(&options)) {
    return std::make_unique<QuantizeCodec>(*quantize);
  }
  if (const auto* cast = std::get_if<Cast>(&options)) return std::make_unique<CastCodec>(*cast);
  if (const auto* top_k = std::get_if<TopK>(&options)) return std::make_unique<TopKCodec>(*top_k);
  if (const auto* power_sgd = std::get_if<PowerSgd>(&options)) check_power_sgd(*power_sgd);
  return nullptr;
}

CompressionOptions resolve(CompressionOptions options) {
  make_codec(options.codec);  // throws for numbers that cannot be
  if (options.feedback.eta && !(*options.feedback.eta >= 0 && *options.feedback.eta <= 1)) {
    throw UsageError(
        fmt::format("feedback econtrol: eta is {}; give 0 to 1, or auto", *options.feedback.eta));
  }
  const double momentum = options.feedback.momentum;
  if (!(momentum >= 0 && momentum < 1)) {
    throw UsageError(
        fmt::format("feedback econtrol: momentum is {}; give 0 to less than 1", momentum));
  }
  if (momentum > 0 && options.feedback.kind != FeedbackKind::econtrol) {
    throw UsageError(
        fmt::format("feedback {} has a momentum of {}; only econtrol and ef21 take one: give 0, or "
                    "momentum to the optimizer",
                    name(options.feedback.kind), momentum));
  }
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
    check_contracts(options);
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

Transmission transmission_of(const CompressionOptions& options, std::int64_t committed,
                             Transmission planned) {
  if (planned == Transmission::silent) return planned;
  return committed < options.start_iter ? Transmission::dense : planned;
}

std::vector<CompressionOptions> valid_combinations() {
  const std::array<CodecOptions, kCodecNames.size()> codecs = {Uncompressed{}, Sign{}, Quantize{},
                                                               Cast{},         TopK{}, PowerSgd{}};
  std::vector<CompressionOptions> all;
  for (const Combination& row : kCombinations) {
    all.push_back({codecs[row.codec], {row.feedback}, row.exchange});
  }
  return all;
}

std::optional<std::string> divergence_warning(const CompressionOptions& options) {
  const auto* quantize = std::get_if<Quantize>(&options.codec);
  if (quantize && quantize->bits == 1 && options.feedback.kind != FeedbackKind::none) {
    return fmt::format(
        "compressor quantize: with 1 bit most values' errors are larger than the values, so the "
        "residuals of {} may keep growing; give 2 bits or more, feedback none, or compressor sign",
        name(options.feedback.kind));
  }
  const auto* top_k = std::get_if<TopK>(&options.codec);
  if (!top_k || options.feedback.kind != FeedbackKind::econtrol || !options.feedback.eta ||
      *options.feedback.eta <= 2 * top_k->density) {
    return std::nullopt;
  }
  return fmt::format(
      "feedback econtrol: eta is {:g}, more than twice the density {:g} of topk, so training may "
      "diverge; give eta=auto or at most {:g}",
      *options.feedback.eta, top_k->density, 2 * top_k->density);
}

CompressionOptions parse_compression(const std::string& compressor, const std::string& feedback,
                                     const std::string& exchange) {
  CompressionOptions options;
  options.codec = parse_codec(compressor);
  options.feedback = parse_feedback(feedback);
  options.exchange = parse_exchange(exchange);
  return resolve(options);
}

std::unique_ptr<GradientReducer> make_reducer(const CompressionOptions& options,
                                              const ReducerLaunch& launch) {
  const CompressionOptions chosen = resolve(options);
  require_no_average(chosen);
  if (std::holds_alternative<PowerSgd>(chosen.codec)) {
    return std::make_unique<PowerSgdReducer>(chosen, launch);
  }
  return std::make_unique<PipelinedReducer>(chosen, launch);
}

Reduction make_reduction(const CompressionOptions& options, const ReducerLaunch& launch) {
  CompressionOptions chosen = resolve(options);
  const double momentum = std::exchange(chosen.feedback.momentum, 0);
  Reduction reduction{make_reducer(chosen, launch), nullptr};
  if (momentum > 0) {
    reduction.before = std::make_unique<GradientAverage>(*reduction.reducer, momentum, launch);
  }
  return reduction;
}

}  // namespace thinwire
