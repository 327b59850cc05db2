#include "runtime/report/pay_off.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

namespace thinwire {

std::optional<double> break_even_bandwidth(double bytes_saved, double seconds_added) {
  if (bytes_saved <= 0) return std::nullopt;
  if (seconds_added <= 0) return std::numeric_limits<double>::infinity();
  return 8 * bytes_saved / seconds_added;
}

std::string format_bandwidth(double bits_per_second) {
  if (std::isinf(bits_per_second)) return "any rate";
  if (bits_per_second < 1e6) return fmt::format("{:.3g} kbit/s", bits_per_second / 1e3);
  if (bits_per_second < 1e9) return fmt::format("{:.3g} Mbit/s", bits_per_second / 1e6);
  return fmt::format("{:.3g} Gbit/s", bits_per_second / 1e9);
}

std::string format_count(double count) {
  std::string digits = fmt::format("{:.0f}", count);
  for (auto place = static_cast<std::ptrdiff_t>(digits.size()) - 3; place > 0; place -= 3) {
    digits.insert(static_cast<std::size_t>(place), 1, ',');
  }
  return digits;
}

std::vector<std::string> pay_off(const StepReport& whole_run) {
  if (whole_run.bytes_dense <= 0 || whole_run.steps == 0) return {};
  std::vector<std::string> lines;
  if (whole_run.compressed_steps > 0) {
    // Dense steps before the first compressed one saved nothing.
    const double share =
        static_cast<double>(whole_run.compressed_steps) / static_cast<double>(whole_run.steps);
    const double saved = (whole_run.bytes_dense - whole_run.bytes_wire) / share;
    const double wire = whole_run.bytes_dense - saved;
    const double arithmetic = whole_run.arithmetic_seconds / share;
    std::string line = fmt::format(
        "compression: {} bytes a step instead of {} ({:.1f} times fewer)", format_count(wire),
        format_count(whole_run.bytes_dense), whole_run.bytes_dense / wire);
    const auto bandwidth = break_even_bandwidth(saved, arithmetic);
    if (!bandwidth) {
      line += ": it never pays";
    } else if (std::isfinite(*bandwidth)) {
      line += fmt::format(" for {:.2f} ms of arithmetic: pays where a rank sends less than {}",
                          1e3 * arithmetic, format_bandwidth(*bandwidth));
    }
    lines.push_back(line);
  }
  lines.push_back(fmt::format(
      "of a step's {:.2f} ms {:.2f} ms were spent waiting for the other ranks and the network{}",
      1e3 * whole_run.step_seconds, 1e3 * whole_run.waited_seconds,
      whole_run.compressed_steps > 0 ? ""
                                     : "; `thinwire advise` tells whether compression would pay"));
  return lines;
}

}  // namespace thinwire
