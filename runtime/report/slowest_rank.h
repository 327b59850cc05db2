// Which rank the others wait for.
#pragma once

#include <vector>

namespace thinwire {

struct SlowestRank {
  int rank = 0;
  double ratio = 1;  // its time over the median of the others'; 1 where there is nothing to compare
};
// Of the ranks' times, in rank order.
SlowestRank slowest_rank(const std::vector<double>& seconds);

}  // namespace thinwire
