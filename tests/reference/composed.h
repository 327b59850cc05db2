// Codec x Feedback x Exchange in plain code: the reference that fused kernels are held to.
#pragma once

#include <map>
#include <memory>

#include "collectives/compression/codec/codec.h"
#include "collectives/compression/options.h"
#include "collectives/compression/reducer/slices.h"
#include "tests/reference/exchange.h"
#include "tests/reference/feedback.h"

namespace thinwire::reference {

// What `policy` lets through `codec` (null: nothing is compressed), the rest uncompressed beside
// it. `feedback` and `exchange` are resolved. Host memory only.
class ComposedReducer final : public GradientReducer {
 public:
  // `options` are resolved.
  explicit ComposedReducer(const CompressionOptions& options);

  void prepare(const Bucket& bucket, int rank, int size) override;
  void require_possible(const Bucket&, const Layout&) const override {}
  void relayout(const Bucket&) override {}
  void stage(Bucket& bucket, Communicator& communicator, const StepContext& step) override;
  void settle(Communicator& communicator) override;
  std::optional<std::string> non_finite(const Bucket& bucket) override;
  // Throws `Bug`: it decodes into the state itself.
  void show_estimate(const Bucket& bucket, Bucket& view) override;
  void commit(Bucket& bucket) override;
  void rollback(Bucket& bucket) override;
  void visit(const Bucket& bucket, StateVisitor& visitor) override;
  std::vector<SlicePlan> plan(const Bucket& bucket) const override;

 private:
  struct Path {
    std::unique_ptr<Feedback> feedback;
    std::unique_ptr<Exchange> compressed;
    std::unique_ptr<Exchange> dense;
    Transmission staged = Transmission::compressed;
    Exchange& used() { return staged == Transmission::dense ? *dense : *compressed; }
  };

  Path& path(const Bucket& bucket);
  std::unique_ptr<Exchange> make_exchange(const Bucket& bucket, int rank, int size) const;
  std::unique_ptr<Feedback> make_feedback(const Bucket& bucket, Range owned) const;

  FeedbackOptions feedback_;
  std::optional<double> eta_;  // none: measured
  SliceCodecs codecs_;
  ExchangeKind exchange_;
  std::map<int, Path> paths_;  // by bucket index
};

}  // namespace thinwire::reference
