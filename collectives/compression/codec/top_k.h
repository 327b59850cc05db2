// The largest values of each block and their places.
#pragma once

#include "collectives/compression/codec/codec.h"
#include "collectives/compression/options.h"

namespace thinwire {

// Keeps at most kept(count) = max(1, round(density count)) of a block's values as they are, ties of
// the rounding away from zero; the payload is defined in kernels/format.h. Which ones follows from
// the bits of |x| as whole numbers, which are in the order of |x|:
//
//   low = 0, high = 1 + the largest bits
//   while high - low > 1
//     mid = low + (high - low) / 2
//     if more than kept have bits >= mid, low = mid, else
//       high = mid, and threshold ends here if 20 n >= 19 kept for the n that have bits >= high
//   keep those with bits >= high; and unless threshold ended early, as long as there is room and
//   low > 0, those with bits == low, in the order of their places.
//
// So `exact` keeps the best approximation by kept(count) values, of equal ones the lower index;
// `threshold` takes a few passes less and keeps at least .95 kept(count), unless so few are not
// zero. Ties fill the room in both, for a block whose values are all equal must send some, too.
// Zeros are never kept.
//
// Contractive: |x - C(x)|^2 <= (1 - kept / count) |x|^2 with the number that was kept.
//
// A payload makes no sense if its number of values is above kept(count), or if an index is not
// below count or not above the one before: it decodes to NaN everywhere, as do NaN and infinities
// in the block (their number is 0xffffffff, the rest zero bits).
class TopKCodec final : public Codec {
 public:
  // Throws `UsageError` for a density or a block that cannot be.
  explicit TopKCodec(const TopK& options);

  std::string describe() const override;
  std::int64_t block() const override { return options_.block; }
  Format format(std::int64_t count) const override;
  std::optional<double> contraction() const override { return options_.density; }

 private:
  TopK options_;
};

}  // namespace thinwire
