// PowerSGD in words: low-rank factors of every matrix, `powersgd` (reducer/power_sgd.h).
//
// Two parts, as a coding's file has them (codings/list.h).
#ifndef THINWIRE_POWER_SGD_OPTIONS_H
#define THINWIRE_POWER_SGD_OPTIONS_H

#include <cstdint>

namespace thinwire {

struct PowerSgd {
  std::int64_t matrix_approximation_rank = 4;
  // A matrix is compressed if (rows + columns) * rank * this < rows * columns.
  double min_compression_rate = 2;
  bool warm_start = true;  // go on from the last step's factor
  // > 0: a column of which orthogonalising leaves no more than this share is dropped.
  double orthogonalization_epsilon = 1e-8;
};

}  // namespace thinwire

#endif

#ifdef THINWIRE_CODING_WORDS
namespace thinwire {

template <>
struct Words<PowerSgd> : WordsByDefault<PowerSgd> {
  static constexpr std::array names = {"powersgd"};
  static constexpr const char* help =
      "powersgd:rank=N[,min_compression_rate=X,warm_start=true|false,orthogonalization_epsilon=X]";
  static constexpr std::array ways = {
      Way{FeedbackKind::error_feedback, ExchangeKind::all_reduce},
      Way{FeedbackKind::none, ExchangeKind::all_reduce},
  };
  static constexpr Word<bool> starts[] = {
      {"true", true}, {"false", false}, {"1", true}, {"0", false}};

  // `rank` is short for matrix_approximation_rank.
  static PowerSgd read(ChoiceReader& spec) {
    constexpr std::int64_t huge = std::int64_t{1} << 30;
    PowerSgd power;
    const std::int64_t rank = spec.integer("rank", power.matrix_approximation_rank, 1, huge);
    power.matrix_approximation_rank = spec.integer("matrix_approximation_rank", rank, 1, huge);
    power.min_compression_rate =
        spec.number("min_compression_rate", power.min_compression_rate, 0, 1e9);
    power.warm_start = choose(spec, "warm_start", starts);
    power.orthogonalization_epsilon =
        spec.number("orthogonalization_epsilon", power.orthogonalization_epsilon, 0, 1);
    return power;
  }
  static std::string write(const PowerSgd& power) {
    return fmt::format(
        "powersgd:rank={},min_compression_rate={},warm_start={},orthogonalization_epsilon={}",
        power.matrix_approximation_rank, power.min_compression_rate, power.warm_start,
        power.orthogonalization_epsilon);
  }
  static void check(const PowerSgd& power) {
    if (power.matrix_approximation_rank < 1) {
      throw UsageError(
          fmt::format("compressor powersgd: matrix_approximation_rank is {}; give 1 or more",
                      power.matrix_approximation_rank));
    }
    if (!(power.min_compression_rate > 0)) {
      throw UsageError(
          fmt::format("compressor powersgd: min_compression_rate is {}; give a number above 0",
                      power.min_compression_rate));
    }
    if (!(power.orthogonalization_epsilon > 0 && power.orthogonalization_epsilon < 1)) {
      throw UsageError(fmt::format(
          "compressor powersgd: orthogonalization_epsilon is {}; give a number between 0 and 1, "
          "such as 1e-8",
          power.orthogonalization_epsilon));
    }
  }
};

}  // namespace thinwire
#endif
