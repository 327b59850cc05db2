// Whether compression pays, from what was measured.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/report/report.h"

namespace thinwire {

// The bandwidth in bits per second below which compression pays: 8 `bytes_saved` / `seconds_added`,
// both per step and rank. None where no bytes are saved; infinite where no time is added.
std::optional<double> break_even_bandwidth(double bytes_saved, double seconds_added);

// What a run says at its end about this rank: the bytes of a compressed step, the seconds of its
// arithmetic, the bandwidth below which that pays, and the time that it waited. All arithmetic
// counts as added, though a dense step has some too and though backward may have hidden it. The
// decoding that updates and norms do themselves is not counted: it costs no more than reading the
// values from memory would, except with Adam, with top-k, and where a norm is needed in every step.
// Empty on one rank.
std::vector<std::string> pay_off(const StepReport& whole_run);

// "12.4 Gbit/s"
std::string format_bandwidth(double bits_per_second);
// "1,270,216"
std::string format_count(double count);

}  // namespace thinwire
