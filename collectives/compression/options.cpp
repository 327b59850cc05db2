#include "collectives/compression/options.h"

#include <algorithm>

#include "collectives/compression/words.h"

namespace thinwire {
namespace {

template <typename C>
void add_ways(std::vector<CompressionOptions>& all) {
  for (const Way& way : Words<C>::ways) all.push_back({C{}, {way.feedback}, way.exchange});
}
template <typename... C>
std::vector<CompressionOptions> all_ways(CodingList<C...>) {
  std::vector<CompressionOptions> all;
  (add_ways<C>(all), ...);
  return all;
}

std::string describe(const CompressionOptions& options) {
  const std::string words =
      std::visit([](const auto& codec) { return words_for(codec).write(codec); }, options.codec);
  return fmt::format("{} x {} x {}", words.substr(0, words.find(':')), name(options.feedback.kind),
                     name(options.exchange));
}

}  // namespace

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

CompressionOptions resolve(CompressionOptions options) {
  std::visit([](const auto& codec) { words_for(codec).check(codec); }, options.codec);
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
  std::string valid;
  for (const CompressionOptions& way : valid_combinations()) {
    if (way.codec.index() != options.codec.index()) continue;
    const bool fits =
        (options.feedback.kind == FeedbackKind::automatic ||
         options.feedback.kind == way.feedback.kind) &&
        (options.exchange == ExchangeKind::automatic || options.exchange == way.exchange);
    if (fits) {
      options.feedback.kind = way.feedback.kind;
      options.exchange = way.exchange;
      std::visit(
          [&](const auto& codec) { words_for(codec).check_feedback(codec, options.feedback); },
          options.codec);
      return options;
    }
    valid += (valid.empty() ? "" : ", ") + describe({options.codec, way.feedback, way.exchange});
  }
  throw UsageError(fmt::format(
      "compressor x feedback x exchange {} makes no sense; with this compressor choose from {}",
      describe(options), valid));
}

Transmission transmission_of(const CompressionOptions& options, std::int64_t committed,
                             Transmission planned) {
  if (planned == Transmission::silent) return planned;
  return committed < options.start_iter ? Transmission::dense : planned;
}

std::vector<CompressionOptions> valid_combinations() {
  return all_ways(Compressors());
}

std::optional<std::string> divergence_warning(const CompressionOptions& options) {
  return std::visit(
      [&](const auto& codec) { return words_for(codec).divergence(codec, options.feedback); },
      options.codec);
}

std::optional<std::string> note_on_feedback(const CompressionOptions& options) {
  return std::visit(
      [&](const auto& codec) { return words_for(codec).note(codec, options.feedback); },
      options.codec);
}

Loss loss_of(const CodecOptions& codec) {
  return std::visit([](const auto& options) { return words_for(options).loss(options); }, codec);
}

}  // namespace thinwire
