// Which compression, as plain structs.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "collectives/compression/codec/codec.h"
#include "collectives/compression/kernels/kernels.h"
#include "collectives/compression/kernels/low_rank.h"
#include "collectives/compression/kernels/permute.h"
#include "collectives/compression/policy.h"
#include "collectives/compression/reducer/before_reduce.h"
#include "collectives/compression/reducer/gradient_reducer.h"
#include "collectives/queue.h"

namespace thinwire {

// Values travel as they are.
struct Uncompressed {};
// One bit per value, one scale per block (codec/sign.h).
struct Sign {
  std::int64_t block = 1024;  // values per scale, a multiple of 8, at most 2^30
  SignScale scale = SignScale::l1;
};
// A few bits per value, one or two numbers per block (codec/quantize.h).
struct Quantize {
  int bits = 4;              // 1 to 8
  std::int64_t block = 512;  // values per range, a multiple of 32
  // None: symmetric from 4 bits on, as a grid with a zero leaves gradients that are mostly zeros
  // alone (those of embeddings); max_min below, where a symmetric grid's unused level is a large
  // share.
  std::optional<Grid> grid = std::nullopt;
  Rounding rounding = Rounding::nearest;
};
// 16 bits per value (codec/cast.h).
struct Cast {
  Half half = Half::bf16;
};
// The largest values of each block and their places (codec/top_k.h).
struct TopK {
  double density = 0.01;      // share of the values that is kept, at least one per block
  std::int64_t block = 4096;  // values that the kept ones are chosen from
  Selection selection = Selection::threshold;
};
// Low-rank factors of every matrix (reducer/power_sgd.h).
struct PowerSgd {
  std::int64_t matrix_approximation_rank = 4;
  // A matrix is compressed if (rows + columns) * rank * this < rows * columns.
  double min_compression_rate = 2;
  bool warm_start = true;  // go on from the last step's factor
  // > 0: a column of which orthogonalising leaves no more than this share is dropped.
  double orthogonalization_epsilon = 1e-8;
};
using CodecOptions = std::variant<Uncompressed, Sign, Quantize, Cast, TopK, PowerSgd>;

enum class FeedbackKind {
  automatic,  // error_feedback for codecs that lose something, none for those that do not
  none,
  error_feedback,
  econtrol,
};

struct FeedbackOptions {
  FeedbackKind kind = FeedbackKind::automatic;
  // econtrol: weight of the error in the message. 0 is EF21. None: half the density of top_k; for
  // others a tenth of the contraction measured while training.
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

// Codec x feedback x exchange. Not every combination makes sense; `make_reducer` knows which do.
struct CompressionOptions {
  CodecOptions codec = Uncompressed{};
  FeedbackOptions feedback = {};
  ExchangeKind exchange = ExchangeKind::automatic;
  // Committed steps before the first compressed one; those go uncompressed.
  std::int64_t start_iter = 0;
  // Tensors that always go uncompressed.
  CompressionPolicy policy = {};
};

// From words:
//   compressor  "none"
//               "sign:block=1024,scale=l1|rms"
//               "quantize:bits=4,block=512,grid=auto|max_min|symmetric,rounding=nearest|stochastic"
//               "fp16", "bf16"
//               "topk:density=0.01,block=4096,select=threshold|exact"
//               "powersgd:matrix_approximation_rank=4,min_compression_rate=2,warm_start=true|false,
//                orthogonalization_epsilon=1e-8"; `rank` is short for the first
//   feedback    "auto", "none", "error_feedback", "econtrol:eta=auto|X,momentum=Y",
//   "ef21:momentum=Y"
//               with X from 0 to 1, Y from 0 to less than 1
//   exchange    "auto", "all_reduce", "two_stage", "all_gather"
// Throws `UsageError` for unknown words and combinations that do not make sense.
CompressionOptions parse_compression(const std::string& compressor, const std::string& feedback,
                                     const std::string& exchange = "auto");

// Null where there is nothing to code slice by slice. Throws `UsageError` for numbers that cannot
// be.
std::unique_ptr<Codec> make_codec(const CodecOptions& options);

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

// What to tell the operator if training may diverge: of a weight of the error above twice the
// density of top_k, from where on it diverges on quadratics, and of feedback for a codec of one bit
// that does not contract.
std::optional<std::string> divergence_warning(const CompressionOptions& options);

// Where a reducer's arithmetic runs: kernels and the queue that they are put on, in whose memory
// the buckets are; by default the host's.
struct ReducerLaunch {
  Kernels<float> for_float = host_kernels<float>();
  Kernels<double> for_double = host_kernels<double>();
  LowRankKernels<float> low_rank_for_float = host_low_rank_kernels<float>();
  LowRankKernels<double> low_rank_for_double = host_low_rank_kernels<double>();
  std::shared_ptr<Queue> queue = make_host_queue();
  // Values that travel together: while some are on the wire, the next are encoded and those before
  // reduced. Small, so that the first are soon on the wire and the last soon off it; large against
  // what a message and a launch cost.
  std::int64_t segment = 1 << 19;
  PermuteKernels<float> permute_for_float = host_permute_kernels<float>();
  PermuteKernels<double> permute_for_double = host_permute_kernels<double>();

  template <typename T>
  const Kernels<T>& kernels() const {
    if constexpr (std::is_same_v<T, double>) {
      return for_double;
    } else {
      return for_float;
    }
  }
  template <typename T>
  const PermuteKernels<T>& permute() const {
    if constexpr (std::is_same_v<T, double>) {
      return permute_for_double;
    } else {
      return permute_for_float;
    }
  }
  template <typename T>
  const LowRankKernels<T>& low_rank() const {
    if constexpr (std::is_same_v<T, double>) {
      return low_rank_for_double;
    } else {
      return low_rank_for_float;
    }
  }
};

// Slices that `options.policy` has no reason to keep go through the codec; the others, by default
// vectors and scalars (biases, norms), ride along uncompressed in the same messages.
// Averages (`feedback.momentum`) are not a reducer's: throws `Bug` for them.
std::unique_ptr<GradientReducer> make_reducer(const CompressionOptions& options,
                                              const ReducerLaunch& launch = {});

// All that `options` ask for.
struct Reduction {
  std::unique_ptr<GradientReducer> reducer;
  std::unique_ptr<BeforeReduce> before;  // null: gradients are reduced as they are
};
Reduction make_reduction(const CompressionOptions& options, const ReducerLaunch& launch = {});

}  // namespace thinwire
