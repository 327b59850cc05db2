#include "runtime/trainer/compression.h"

#include <fmt/format.h>

#include "collectives/base/error.h"

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
  compression.policy.min_dimensions = options.min_dimensions;
  compression.policy.dense_below = options.dense_below;
  compression.policy.dense_names = split_at_commas(options.dense_names);
  return resolve(compression);
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
  const auto* quantize = std::get_if<Quantize>(&compression.codec);
  const bool is_fine = quantize != nullptr && quantize->bits >= 4;
  if (loses_much(compression.codec) && !is_fine && options.optimizer.starts_with("adam")) {
    notes.push_back(
        "note: Adam's second moments follow what was sent, not the gradients, and models become "
        "worse by a few per cent (PowerSGD) to nearly half (1 bit); sgd, or 4 bits and more, do "
        "not");
  }
  const auto* top_k = std::get_if<TopK>(&compression.codec);
  if (top_k != nullptr && compression.feedback.kind == FeedbackKind::econtrol &&
      compression.feedback.momentum == 0) {
    notes.push_back(fmt::format(
        "note: what topk sends rarely econtrol applies in every step in between, noise and all; "
        "--feedback econtrol:eta={:g},momentum=0.9 tracks averages, error_feedback needs none",
        top_k->density));
  }
  if (const auto note = divergence_warning(compression)) notes.push_back("warning: " + *note);
  return notes;
}

}  // namespace thinwire
