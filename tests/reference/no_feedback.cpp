#include "tests/reference/feedback.h"

namespace thinwire::reference {
namespace {

class NoFeedback final : public Feedback {
 public:
  void before_compressed(const Bucket&, Communicator&, std::int64_t) override {}
  void compensate(at::Tensor, std::int64_t) override {}
  void absorb(at::Tensor, std::int64_t, const Codec&, const at::Tensor&) override {}
  void hold(at::Tensor, std::int64_t) override {}
  void owner_compensate(at::Tensor, std::int64_t) override {}
  void owner_absorb(at::Tensor, std::int64_t, const Codec&, const at::Tensor&) override {}
  void owner_hold(std::int64_t, std::int64_t) override {}
  void estimate(at::Tensor, std::int64_t) override {}
  void leave_out(at::Tensor, const Slice&) override {}
  void commit(at::Tensor&) override {}
  void rollback() override {}
  void before_dense(const Bucket&) override {}
  void on_dense(const Bucket&) override {}
  void visit(const Bucket&, StateVisitor&) override {}
};

}  // namespace

std::unique_ptr<Feedback> make_no_feedback() {
  return std::make_unique<NoFeedback>();
}

}  // namespace thinwire::reference
