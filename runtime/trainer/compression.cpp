#include "runtime/trainer/compression.h"

#include <fmt/format.h>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "collectives/compression/parse.h"
#include "optimizers/factory.h"

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
  const auto gradient_codec = gradient_codec_of(options.optimizer);
  const std::string made_for = gradient_codec ? "sign:scale=rms" : "none";
  const std::string compressor = options.compressor == "auto" ? made_for : options.compressor;
  CompressionOptions compression =
      parse_compression(compressor, options.feedback, options.exchange);
  compression.gradient_codec = gradient_codec;
  if (compression.feedback.momentum > 0 && exchanges_momentum(options.optimizer)) {
    throw UsageError(
        fmt::format("--feedback averages gradients (momentum={}), and --optimizer {} exchanges its "
                    "momentum; leave one of them out",
                    compression.feedback.momentum, options.optimizer));
  }
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
  const std::string optimizer = ChoiceReader("--optimizer", options.optimizer).name();
  const bool of_gradients = !exchanges_momentum(options.optimizer);
  if (loss >= Loss::some && options.momentum >= 0.5 && optimizer == "sgd" && of_gradients) {
    notes.push_back(fmt::format(
        "note: momentum {} behind compressed gradients needs a smaller learning rate than without "
        "compression; --optimizer sgd:exchange=momentum exchanges it instead, and with --momentum "
        "0 "
        "the same rate per step works",
        options.momentum));
  }
  if (loss == Loss::most && (optimizer == "adam" || optimizer == "adamw")) {
    notes.emplace_back(
        "note: Adam's second moments follow what was sent, not the gradients, and models become "
        "worse by a few per cent (PowerSGD) to nearly half (1 bit); --optimizer onebit_adam, sgd, "
        "or 4 bits and more, do not");
  }
  if (const auto note = note_on_feedback(compression)) notes.push_back(*note);
  if (const auto note = divergence_warning(compression)) notes.push_back("warning: " + *note);
  return notes;
}

}  // namespace thinwire
