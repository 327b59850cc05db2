// Which compression, as plain structs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "collectives/compression/codings/list.h"
#include "collectives/compression/policy.h"
#include "collectives/compression/reducer/gradient_reducer.h"
#include "collectives/compression/reducer/power_sgd_options.h"

namespace thinwire {

// The compressors: the codings, which code slice by slice, and those that have a reducer of their
// own, one line each.
using CompressorsWithReducers = CodingList<  //
    PowerSgd>;

template <typename... C, typename... D>
CodingList<C..., D...> joined(CodingList<C...>, CodingList<D...>);
template <typename... C>
std::variant<C...> one_of(CodingList<C...>);
using Compressors = decltype(joined(Codings(), CompressorsWithReducers()));
using CodecOptions = decltype(one_of(Compressors()));

enum class FeedbackKind {
  automatic,  // error_feedback for codecs that lose something, none for those that do not
  none,
  error_feedback,
  econtrol,
};

struct FeedbackOptions {
  FeedbackKind kind = FeedbackKind::automatic;
  // econtrol: weight of the error in the message. 0 is EF21. None: half of the coding's contraction
  // where that is known beforehand, else a tenth of what is measured while training.
  std::optional<double> eta = std::nullopt;
  // econtrol: share of the average of this rank's gradients that is kept, below 1; the average is
  // what is tracked (reducer/gradient_average.h). 0: the gradient itself is.
  double momentum = 0;
};

enum class ExchangeKind {
  automatic,  // the one that the codec is made for
  all_reduce,
  two_stage,
  all_gather,
};

// Codec x feedback x exchange. Not every combination makes sense; `valid_combinations` has those
// that do.
struct CompressionOptions {
  CodecOptions codec = Uncompressed{};
  FeedbackOptions feedback = {};
  ExchangeKind exchange = ExchangeKind::automatic;
  // Committed steps before the first compressed one; those go uncompressed.
  std::int64_t start_iter = 0;
  // Tensors that always go uncompressed.
  CompressionPolicy policy = {};
  // Where an optimizer exchanges its momentum, gradients are coded with this instead, and with what
  // `automatic` stands for. None: with the above.
  std::optional<CodecOptions> gradient_codec = std::nullopt;
};

// The words for them.
const char* name(FeedbackKind feedback);
const char* name(ExchangeKind exchange);

// The options with `automatic` replaced by what it stands for. Throws `UsageError` for a
// combination that does not make sense, where the message lists those that do, and for a number or
// a policy that cannot be.
CompressionOptions resolve(CompressionOptions options);

// How a step that follows `committed` committed ones travels where `planned` is what the optimizer
// asks for: the first `start_iter` ones go uncompressed.
Transmission transmission_of(const CompressionOptions& options, std::int64_t committed,
                             Transmission planned);

// Every combination that makes sense, with the codecs' default numbers.
std::vector<CompressionOptions> valid_combinations();

// What to tell the operator if training may diverge with this compressor and feedback.
std::optional<std::string> divergence_warning(const CompressionOptions& options);

// What else there is to tell of them, beginning with "note: ".
std::optional<std::string> note_on_feedback(const CompressionOptions& options);

// How much of a gradient does not arrive in its own step, by what training makes of it.
enum class Loss {
  nothing,
  little,  // the last bits of a value
  some,    // as 4 bits per value lose
  most,
};
Loss loss_of(const CodecOptions& codec);

}  // namespace thinwire
