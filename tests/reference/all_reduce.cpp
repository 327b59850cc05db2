#include <ATen/ops/cat.h>

#include "collectives/base/error.h"
#include "collectives/compression/reducer/owners.h"
#include "tests/reference/codec.h"
#include "tests/reference/exchange.h"

namespace thinwire::reference {
namespace {

class AllReduceExchange final : public Exchange {
 public:
  Range owned() const override { return {}; }

  void stage(Bucket& bucket, Feedback&, Communicator& communicator, const RoundingKeys&) override {
    std::vector<at::Tensor> live;
    std::vector<Chunk> chunks = one_chunk(bucket);
    count_live(bucket, chunks);
    for (const Range& run : live_runs(bucket, chunks)) {
      live.push_back(bucket.gradient.narrow(0, run.begin, run.count()));
    }
    if (!live.empty()) {
      const at::Tensor message = at::cat(live);
      communicator.all_reduce(message, ReduceOp::sum)->wait();
      std::int64_t from = 0;
      for (at::Tensor& part : live) {
        part.copy_(message.narrow(0, from, part.numel()));
        from += part.numel();
      }
    }
    for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
      const Slice& slice = bucket.slices[i];
      if (bucket.layout.rests(i)) bucket.gradient.narrow(0, slice.offset, slice.numel).zero_();
    }
    // A sum with a NaN or an infinity in it is not finite on any rank.
    non_finite_.reset();
    if (!all_finite(bucket.gradient)) non_finite_ = culprit(bucket);
    if (communicator.size() > 1) bucket.gradient.div_(communicator.size());
  }

  std::optional<std::size_t> non_finite() const override { return non_finite_; }
  void decode(Bucket&, Feedback&) override {}

 private:
  static std::size_t culprit(const Bucket& bucket) {
    for (std::size_t i = 0; i < bucket.slices.size(); ++i) {
      const Slice& slice = bucket.slices[i];
      if (!all_finite(bucket.gradient.narrow(0, slice.offset, slice.numel))) return i;
    }
    throw Bug("bug: a value between the slices of a bucket is not finite");
  }

  std::optional<std::size_t> non_finite_;
};

}  // namespace

std::unique_ptr<Exchange> make_all_reduce_exchange() {
  return std::make_unique<AllReduceExchange>();
}

}  // namespace thinwire::reference
