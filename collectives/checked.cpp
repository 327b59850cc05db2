#include "collectives/checked.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include "collectives/base/error.h"
#include "collectives/operation.h"

namespace thinwire {
namespace {

class CheckedCommunicator final : public OperationCommunicator {
 public:
  explicit CheckedCommunicator(std::unique_ptr<Communicator> inner)
      : OperationCommunicator(inner->rank(), inner->size(), inner->timeout()),
        inner_(std::move(inner)) {}

  std::unique_ptr<Communicator> split(int color, int key) override {
    Operation call;
    call.kind = OperationKind::split;
    agree(call);
    return make_checked(inner_->split(color, key));
  }
  void abort(const std::string& reason) override { inner_->abort(reason); }

 private:
  std::unique_ptr<Work> post(Operation call) override {
    agree(call);
    return forward(*inner_, call);
  }

  // Fixed-size record, so that the comparison itself cannot mismatch: sequence, kind, op, dtype,
  // elements, root, then input counts and output counts per rank.
  static constexpr std::int64_t kHead = 6;

  void agree(const Operation& call) {
    const std::int64_t width = kHead + 2 * size();
    at::Tensor record = at::empty({width}, at::kLong);
    std::int64_t* mine = record.data_ptr<std::int64_t>();
    std::fill_n(mine, width, 0);
    mine[0] = sequence_++;
    mine[1] = static_cast<std::int64_t>(call.kind);
    mine[2] = static_cast<std::int64_t>(call.op);
    mine[3] = call.input.defined() ? static_cast<std::int64_t>(call.input.scalar_type()) : -1;
    // A gathered input differs between ranks by right; its total does not.
    const bool by_output = call.kind == OperationKind::all_gather;
    if (call.input.defined() && call.kind != OperationKind::all_to_all) {
      mine[4] = by_output ? call.output.numel() : call.input.numel();
    }
    mine[5] = call.root;
    std::copy(call.input_counts.begin(), call.input_counts.end(), mine + kHead);
    std::copy(call.output_counts.begin(), call.output_counts.end(), mine + kHead + size());

    at::Tensor all = at::empty({width * size()}, at::kLong);
    inner_->all_gather(all, record, {})->wait();
    const std::int64_t* records = all.data_ptr<std::int64_t>();
    for (int a = 0; a < size(); ++a) {
      for (int b = a + 1; b < size(); ++b) {
        if (!match(records + a * width, a, records + b * width, b)) {
          const std::string problem = fmt::format(
              "rank {} is about to {}, rank {} to {}; every rank must call the same "
              "operations with matching sizes in the same order",
              a, describe(records + a * width), b, describe(records + b * width));
          inner_->abort(problem);
          throw RanksDisagree(problem);
        }
      }
    }
  }

  bool match(const std::int64_t* a, int rank_a, const std::int64_t* b, int rank_b) const {
    if (!std::equal(a, a + kHead, b)) return false;
    const std::int64_t* in_a = a + kHead;
    const std::int64_t* in_b = b + kHead;
    if (a[1] == static_cast<std::int64_t>(OperationKind::all_to_all)) {
      return in_a[rank_b] == in_b[size() + rank_a] && in_b[rank_a] == in_a[size() + rank_b];
    }
    return std::equal(in_a, in_a + 2 * size(), in_b);
  }

  std::string describe(const std::int64_t* record) const {
    const std::string what = name(static_cast<OperationKind>(record[1]));
    if (record[3] < 0) return fmt::format("{} (operation {})", what, record[0]);
    return fmt::format("{} {} {} (operation {}, root {})", what, record[4],
                       toString(static_cast<at::ScalarType>(record[3])), record[0], record[5]);
  }

  std::unique_ptr<Communicator> inner_;
  std::int64_t sequence_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_checked(std::unique_ptr<Communicator> inner) {
  return std::make_unique<CheckedCommunicator>(std::move(inner));
}

}  // namespace thinwire
