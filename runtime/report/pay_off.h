// Whether compression pays, from what was measured.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/report/report.h"

namespace thinwire {

// The bandwidth in bits per second below which compression pays: 8 `bytes_saved` / `seconds_added`,
// both per step and rank. None where nothing is saved; infinite where nothing is added.
std::optional<double> break_even_bandwidth(double bytes_saved, double seconds_added);

// What a run says at its end, of this rank: bytes of a compressed step, seconds of its arithmetic,
// the bandwidth below which they pay, and what was waited for. All of the arithmetic counts as
// added, though a dense step has some too, and though backward may have hidden it. Not in it is the
// decoding that updates and norms do themselves, which costs no more than the values' way through
// memory except with Adam, top-k, or a norm in every step. Nothing on one rank.
std::vector<std::string> pay_off(const StepReport& whole_run);

// "12.4 Gbit/s"
std::string format_bandwidth(double bits_per_second);
// "1,270,216"
std::string format_count(double count);

}  // namespace thinwire
