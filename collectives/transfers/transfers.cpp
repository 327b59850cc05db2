// Chooses the way of an operation.
#include "collectives/transfers/transfers.h"

#include <algorithm>

#include "collectives/transfers/direct.h"
#include "collectives/transfers/pair_sum.h"
#include "collectives/transfers/ring_sum.h"

namespace thinwire {

std::unique_ptr<Transfers> plan_transfers(const Operation& call, int rank, int size,
                                          const TransferOptions& options, BlockPool& pool) {
  const bool all = call.kind == OperationKind::all_reduce;
  if ((all || call.kind == OperationKind::reduce_scatter) && options.ring_piece_bytes > 0) {
    const Counts& counts = all ? call.output_counts : call.input_counts;
    const std::int64_t largest = *std::max_element(counts.begin(), counts.end()) *
                                 static_cast<std::int64_t>(call.input.element_size());
    if (all && size == 2) {
      return std::make_unique<PairSum>(call, rank, options.ring_piece_bytes);
    }
    // Round a ring no link carries two streams. A small sum goes to the owners and back, which
    // takes two messages' time on any number of ranks.
    if (largest > options.ring_piece_bytes) {
      return std::make_unique<RingSum>(call, rank, size, options.ring_piece_bytes);
    }
  }
  return std::make_unique<DirectTransfers>(call, rank, size, options, pool);
}

}  // namespace thinwire
