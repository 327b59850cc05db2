// All ranks were started alike, or all of them say in what they differ.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "collectives/communicator.h"

namespace thinwire {

// What a rank was started with: name -> value, e.g. "lr" -> "0.1".
using Facts = std::map<std::string, std::string>;

// Ascending ranks as people read them: {1} -> "rank 1", {0, 2, 3} -> "ranks 0, 2-3".
std::string rank_list(const std::vector<int>& ranks);

// What to tell the operator of a command.
inline constexpr const char* kStartedDifferently =
    "the ranks were started differently; give all of them the same options and data";

// Collective. Throws `ConfigurationMismatch` with `what_to_do` ("the ranks ...; give ...") and
// `differences` on every rank unless all ranks have the same facts.
void require_same_everywhere(Communicator& communicator, const Facts& facts,
                             const std::string& what_to_do);

// A line for each key that differs, e.g. "lr: 0.1 (ranks 0, 2-3), 0.2 (rank 1)"; empty if none
// does. facts[i] are rank i's. Values of several lines are shortened to the first line that
// differs.
std::string differences(const std::vector<Facts>& facts);

// Collective: what `say` returns on rank 0, where one rank must decide because ranks may see
// different things (a file system that settles). If it throws an `Error` there, every rank throws
// an `AgreedError` of that code.
std::string rank_zero_says(Communicator& communicator, const std::function<std::string()>& say);

}  // namespace thinwire
