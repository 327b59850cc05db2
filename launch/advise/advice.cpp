#include "launch/advise/advice.h"

#include <fmt/format.h>

#include <algorithm>

#include "runtime/report/pay_off.h"

namespace thinwire {
namespace {

constexpr double kNoticeable = 1.03;

std::string pays_below(const Choice& choice, const Choice& dense) {
  if (&choice == &dense) return "-";
  const auto bandwidth = break_even(choice, dense);
  return bandwidth ? format_bandwidth(*bandwidth) : "never";
}

std::string verdict(const std::vector<Choice>& choices, std::size_t dense) {
  const Choice& best = choices[best_of(choices)];
  const Choice& none = choices[dense];
  if (&best == &none) {
    return fmt::format(
        "best: --compressor none. Compression does not pay here: without any network a step would "
        "take {:.2f} ms, and no compressor makes it noticeably shorter than {:.2f} ms.\n",
        1e3 * none.local_seconds, 1e3 * none.predicted_seconds);
  }
  return fmt::format("best: --compressor {}: steps {:.2f} times as fast as uncompressed ones.\n",
                     best.compressor, none.predicted_seconds / best.predicted_seconds);
}

}  // namespace

std::size_t best_of(const std::vector<Choice>& choices) {
  const auto shortest = std::min_element(
      choices.begin(), choices.end(),
      [](const Choice& a, const Choice& b) { return a.predicted_seconds < b.predicted_seconds; });
  const auto first = std::find_if(choices.begin(), choices.end(), [&](const Choice& choice) {
    return choice.predicted_seconds < kNoticeable * shortest->predicted_seconds;
  });
  return static_cast<std::size_t>(std::min(first, shortest) - choices.begin());
}

std::optional<double> break_even(const Choice& choice, const Choice& dense) {
  return break_even_bandwidth(dense.wire_bytes - choice.wire_bytes,
                              choice.arithmetic_seconds - dense.arithmetic_seconds);
}

std::string describe(const std::vector<Choice>& choices, std::size_t dense) {
  std::size_t width = 10;
  for (const Choice& choice : choices) width = std::max(width, choice.compressor.size());
  std::string text =
      fmt::format("{:<{}} {:>14} {:>13} {:>11} {:>10} {:>9} {:>14}\n", "compressor", width,
                  "wire bytes", "arithmetic ms", "network ms", "step ms", "x faster", "pays below");
  for (const Choice& choice : choices) {
    text += fmt::format("{:<{}} {:>14} {:>13.2f} {:>11.2f} {:>10.2f} {:>9.2f} {:>14}\n",
                        choice.compressor, width, format_count(choice.wire_bytes),
                        1e3 * choice.arithmetic_seconds, 1e3 * choice.network_seconds,
                        1e3 * choice.predicted_seconds,
                        choices[dense].predicted_seconds / choice.predicted_seconds,
                        pays_below(choice, choices[dense]));
  }
  return text + verdict(choices, dense);
}

}  // namespace thinwire
