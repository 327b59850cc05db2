// Which compression, as plain structs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "collectives/compression/kernels/kernels.h"
#include "collectives/compression/reducer/gradient_reducer.h"
#include "collectives/queue.h"

namespace thinwire {

// Values travel as they are.
struct Uncompressed {};
// One bit per value, one scale per block (codec/sign.h).
struct Sign {
  std::int64_t block = 1024;  // values per scale, a multiple of 8
};
using CodecOptions = std::variant<Uncompressed, Sign>;

enum class FeedbackKind {
  automatic,  // error_feedback for codecs that lose something, none for those that do not
  none,
  error_feedback,
};

enum class ExchangeKind {
  automatic,  // the one that the codec is made for
  all_reduce,
  two_stage,
};

// Codec x feedback x exchange. Not every combination makes sense; `make_reducer` knows which do.
struct CompressionOptions {
  CodecOptions codec = Uncompressed{};
  FeedbackKind feedback = FeedbackKind::automatic;
  ExchangeKind exchange = ExchangeKind::automatic;
};

// From words: compressor "none", "sign", "sign:block=4096"; feedback "auto", "none",
// "error_feedback". Throws `UsageError` for unknown words and combinations that do not make sense.
CompressionOptions parse_compression(const std::string& compressor, const std::string& feedback);

// The options with `automatic` replaced by what it stands for. Throws `UsageError` for a
// combination that does not make sense; the message lists those that do.
CompressionOptions resolve(CompressionOptions options);

// Where a reducer's arithmetic runs: kernels and the queue that they are put on, in whose memory
// the buckets are; by default the host's.
struct ReducerLaunch {
  Kernels<float> for_float = host_kernels<float>();
  Kernels<double> for_double = host_kernels<double>();
  std::shared_ptr<Queue> queue = make_host_queue();

  template <typename T>
  const Kernels<T>& kernels() const {
    if constexpr (std::is_same_v<T, double>) {
      return for_double;
    } else {
      return for_float;
    }
  }
};

// Matrices and convolution kernels go through the codec; vectors and scalars (biases, norms) ride
// along uncompressed in the same messages.
std::unique_ptr<GradientReducer> make_reducer(const CompressionOptions& options,
                                              const ReducerLaunch& launch = {});

// The same in plain code, part by part: what the kernels are held to. Host memory only.
std::unique_ptr<GradientReducer> make_reference_reducer(const CompressionOptions& options);

}  // namespace thinwire
