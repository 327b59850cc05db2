#include "runtime/report/slowest_rank.h"

#include <algorithm>

namespace thinwire {

SlowestRank slowest_rank(const std::vector<double>& seconds) {
  const auto slowest = std::max_element(seconds.begin(), seconds.end());
  SlowestRank result{static_cast<int>(slowest - seconds.begin()), 1};
  std::vector<double> others(seconds.begin(), slowest);
  others.insert(others.end(), slowest + 1, seconds.end());
  std::sort(others.begin(), others.end());
  if (others.empty()) return result;
  const double median = (others[(others.size() - 1) / 2] + others[others.size() / 2]) / 2;
  if (median > 0) result.ratio = *slowest / median;
  return result;
}

}  // namespace thinwire
