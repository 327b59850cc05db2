#include "runtime/trainer/compression.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

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
  if (const auto note = eta_warning(compression)) notes.push_back("warning: " + *note);
  return notes;
}

std::vector<std::string> describe_plans(const std::vector<SlicePlan>& plans) {
  struct Way {
    std::int64_t tensors = 0;
    std::int64_t values = 0;
    std::int64_t bytes = 0;
  };
  std::map<std::string, Way> ways;
  for (const SlicePlan& plan : plans) {
    Way& way = ways[plan.coding];
    way.tensors += 1;
    way.values += plan.numel;
    way.bytes += plan.payload_bytes;
  }
  std::vector<std::string> lines;
  for (const auto& [coding, way] : ways) {
    lines.push_back(fmt::format("{} tensors, {} values: {}, {} bytes a message", way.tensors,
                                way.values, coding, way.bytes));
  }
  return lines;
}

std::int64_t message_bytes(const std::vector<SlicePlan>& plans) {
  std::int64_t bytes = 0;
  for (const SlicePlan& plan : plans) bytes += plan.payload_bytes;
  return bytes;
}

std::vector<std::string> notes_on_names(const CompressionPolicy& policy,
                                        const std::vector<SlicePlan>& plans) {
  std::vector<std::string> notes;
  for (const std::string& pattern : policy.dense_names) {
    const bool used = std::any_of(plans.begin(), plans.end(), [&](const SlicePlan& plan) {
      return matches(plan.name, pattern);
    });
    if (used) continue;
    notes.push_back(
        fmt::format("warning: no parameter's name matches '{}' of --dense-names", pattern));
  }
  return notes;
}

}  // namespace thinwire
