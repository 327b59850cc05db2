#include "runtime/trainer/compression.h"

#include <fmt/format.h>

#include "runtime/base/error.h"

namespace thinwire {
namespace {

std::vector<std::string> split_at_commas(const std::string& text) {
  std::vector<std::string> parts;
  if (text.empty()) return parts;
  std::size_t begin = 0;
  for (std::size_t comma = 0; comma != std::string::npos; begin = comma + 1) {
    comma = text.find(',', begin);
    parts.push_back(text.substr(begin, comma == std::string::npos ? comma : comma - begin));
  }
  return parts;
}

bool loses_much(const CodecOptions& codec) {
  return !std::holds_alternative<Uncompressed>(codec) && !std::holds_alternative<Cast>(codec);
}

}  // namespace

CompressionOptions compression_of(const TrainOptions& options) {
  CompressionOptions compression =
      parse_compression(options.compressor, options.feedback, options.exchange);
  compression.start_iter = options.start_iter;
  compression.policy.dense_below = options.dense_below;
  compression.policy.dense_names = split_at_commas(options.dense_names);
  return resolve(compression);
}

Transmission transmission_of(const CompressionOptions& options, std::int64_t committed,
                             Transmission planned) {
  return committed < options.start_iter ? Transmission::dense : planned;
}

std::vector<std::string> notes_on_compression(const TrainOptions& options) {
  const CompressionOptions compression = compression_of(options);
  std::vector<std::string> notes;
  if (loses_much(compression.codec) && options.momentum >= 0.5 &&
      options.optimizer.starts_with("sgd")) {
    notes.push_back(fmt::format(
        "note: momentum {} behind compressed gradients needs a smaller learning rate than without "
        "compression; with --momentum 0 the same rate per step works",
        options.momentum));
  }
  if (const auto note = note_on_eta(compression)) notes.push_back(*note);
  return notes;
}

std::optional<std::string> note_on_eta(const CompressionOptions& options) {
  const auto* top_k = std::get_if<TopK>(&options.codec);
  const FeedbackOptions& feedback = options.feedback;
  if (!top_k || feedback.kind != FeedbackKind::econtrol || !feedback.eta) return std::nullopt;
  if (*feedback.eta <= 2 * top_k->density) return std::nullopt;
  return fmt::format(
      "warning: econtrol with eta {} and top-k of density {} may diverge; keep eta at or below "
      "twice "
      "the density, or use eta=auto",
      *feedback.eta, top_k->density);
}

}  // namespace thinwire
