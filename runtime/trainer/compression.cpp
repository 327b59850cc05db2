#include "runtime/trainer/compression.h"

#include <fmt/format.h>

#include "collectives/base/error.h"
#include "collectives/compression/parse.h"

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
  const Loss loss = loss_of(compression.codec);
  if (loss >= Loss::some && options.momentum >= 0.5 && options.optimizer.starts_with("sgd")) {
    notes.push_back(fmt::format(
        "note: momentum {} behind compressed gradients needs a smaller learning rate than without "
        "compression; with --momentum 0 the same rate per step works",
        options.momentum));
  }
  if (loss == Loss::most && options.optimizer.starts_with("adam")) {
    notes.emplace_back(
        "note: Adam's second moments follow what was sent, not the gradients, and models become "
        "worse by a few per cent (PowerSGD) to nearly half (1 bit); sgd, or 4 bits and more, do "
        "not");
  }
  if (const auto note = note_on_feedback(compression)) notes.push_back(*note);
  if (const auto note = divergence_warning(compression)) notes.push_back("warning: " + *note);
  return notes;
}

}  // namespace thinwire
