#include <ATen/ops/empty.h>

#include <functional>

#include "tests/reference/chunks.h"
#include "tests/reference/codec.h"
#include "tests/reference/exchange.h"

namespace thinwire::reference {
namespace {

class AllGatherExchange final : public Exchange {
 public:
  AllGatherExchange(const Bucket& bucket, const CodecOfSlice& codecs)
      : codecs_(codecs), whole_(one_chunk(bucket).front()) {}

  Range owned() const override { return {}; }

  void stage(Bucket& bucket, Feedback& feedback, Communicator& communicator,
             const RoundingKeys& keys) override {
    bytes_ = payload_bytes(bucket, whole_, codecs_);
    ranks_ = communicator.size();
    const at::Tensor message = at::empty({bytes_}, at::kByte);
    for (const Piece& piece : whole_.pieces) {
      if (!bucket.layout.rests(piece.slice)) continue;
      feedback.hold(bucket.gradient.narrow(0, piece.begin, piece.count), piece.begin);
    }
    for_each_payload(bucket, whole_, codecs_, message,
                     [&](const Piece& piece, const Codec& codec, const at::Tensor& payload) {
                       at::Tensor values = bucket.gradient.narrow(0, piece.begin, piece.count);
                       feedback.compensate(values, piece.begin);
                       encode(codec, values, payload, {keys.worker, piece.begin});
                       feedback.absorb(values, piece.begin, codec, payload);
                     });
    received_ = at::empty({bytes_ * ranks_}, at::kByte);
    communicator.all_gather(received_, message, {})->wait();
    non_finite_ = culprit(bucket);
  }

  std::optional<std::size_t> non_finite() const override { return non_finite_; }

  void decode(Bucket& bucket, Feedback& feedback) override {
    bucket.gradient.zero_();
    for_each_received(
        bucket, [&](const Piece& piece, const Codec& codec, const at::Tensor& payload) {
          decode_add(codec, payload, 1, bucket.gradient.narrow(0, piece.begin, piece.count));
        });
    if (ranks_ > 1) bucket.gradient.div_(ranks_);
    for (const Piece& piece : whole_.pieces) {
      if (bucket.rests(piece.slice)) continue;
      feedback.estimate(bucket.gradient.narrow(0, piece.begin, piece.count), piece.begin);
    }
  }

 private:
  // In rank order.
  void for_each_received(
      const Bucket& bucket,
      const std::function<void(const Piece&, const Codec&, const at::Tensor&)>& body) const {
    for (std::int64_t from = 0; from < ranks_; ++from) {
      for_each_payload(bucket, whole_, codecs_, received_.narrow(0, from * bytes_, bytes_), body);
    }
  }

  // The first slice of all ranks.
  std::optional<std::size_t> culprit(const Bucket& bucket) const {
    std::optional<std::size_t> slice;
    for_each_received(bucket,
                      [&](const Piece& piece, const Codec& codec, const at::Tensor& payload) {
                        if (slice && *slice <= piece.slice) return;
                        const auto dtype = bucket.gradient.scalar_type();
                        if (!finite(codec, payload, piece.count, dtype, ranks_))
                          slice = piece.slice;
                      });
    return slice;
  }

  const CodecOfSlice codecs_;
  const Chunk whole_;       // the bucket in one chunk
  std::int64_t bytes_ = 0;  // of one rank's message in this step (frozen slices are left out)
  std::int64_t ranks_ = 1;
  at::Tensor received_;  // all ranks' messages, kept for the commit
  std::optional<std::size_t> non_finite_;
};

}  // namespace

std::unique_ptr<Exchange> make_all_gather_exchange(const Bucket& bucket,
                                                   const CodecOfSlice& codecs) {
  return std::make_unique<AllGatherExchange>(bucket, codecs);
}

}  // namespace thinwire::reference
