// Which rank the others wait for.
#pragma once

#include <vector>

namespace thinwire {

struct SlowestRank {
  int rank = 0;
  double ratio = 1;  // its time as a multiple of the others' median; 1 where there are no others
};
// Of the ranks' times, in rank order.
SlowestRank slowest_rank(const std::vector<double>& seconds);

}  // namespace thinwire
