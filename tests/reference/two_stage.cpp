#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <functional>
#include <numeric>

#include "tests/reference/chunks.h"
#include "tests/reference/codec.h"
#include "tests/reference/exchange.h"

namespace thinwire::reference {
namespace {

class TwoStageExchange final : public Exchange {
 public:
  TwoStageExchange(const Bucket& bucket, const CodecOfSlice& codecs, int rank, int size)
      : codecs_(codecs),
        chunks_(cut_into_chunks(bucket, codecs, size)),
        rank_(static_cast<std::size_t>(rank)) {}

  Range owned() const override { return chunks_[rank_].range(); }

  void stage(Bucket& bucket, Feedback& feedback, Communicator& communicator,
             const RoundingKeys& keys) override {
    bytes_.clear();
    for (const Chunk& chunk : chunks_) bytes_.push_back(payload_bytes(bucket, chunk, codecs_));
    const at::Tensor messages = encode_messages(bucket, feedback, keys.worker);

    const Counts mine(chunks_.size(), bytes_[rank_]);
    at::Tensor arrived = byte_tensor(bytes_[rank_] * static_cast<std::int64_t>(chunks_.size()));
    communicator.all_to_all(arrived, messages, mine, bytes_)->wait();

    const at::Tensor reply = reduce_own_chunk(bucket, feedback, arrived, keys.owner);
    received_ = byte_tensor(messages.numel());
    communicator.all_gather(received_, reply, bytes_)->wait();
    non_finite_ = culprit(bucket);
  }

  std::optional<std::size_t> non_finite() const override { return non_finite_; }

  void decode(Bucket& bucket, Feedback& feedback) override {
    bucket.gradient.zero_();
    for_each_received(bucket,
                      [&](const Piece& piece, const Codec& codec, const at::Tensor& payload) {
                        if (bucket.slices[piece.slice].absent) return;
                        at::Tensor values = bucket.gradient.narrow(0, piece.begin, piece.count);
                        decode_add(codec, payload, 1, values);
                        feedback.estimate(values, piece.begin);
                      });
  }

 private:
  static at::Tensor byte_tensor(std::int64_t bytes) { return at::empty({bytes}, at::kByte); }

  // This rank's messages to all owners, packed; leaves the new residual in the gradient buffer.
  at::Tensor encode_messages(Bucket& bucket, Feedback& feedback, std::uint64_t key) {
    at::Tensor packed = byte_tensor(std::accumulate(bytes_.begin(), bytes_.end(), std::int64_t{0}));
    std::int64_t offset = 0;
    for (std::size_t owner = 0; owner < chunks_.size(); ++owner) {
      for (const Piece& piece : chunks_[owner].pieces) {
        if (!bucket.layout.rests(piece.slice)) continue;
        feedback.hold(bucket.gradient.narrow(0, piece.begin, piece.count), piece.begin);
      }
      for_each_payload(bucket, chunks_[owner], codecs_, packed.narrow(0, offset, bytes_[owner]),
                       [&](const Piece& piece, const Codec& codec, const at::Tensor& payload) {
                         at::Tensor values = bucket.gradient.narrow(0, piece.begin, piece.count);
                         feedback.compensate(values, piece.begin);
                         encode(codec, values, payload, {key, piece.begin});
                         feedback.absorb(values, piece.begin, codec, payload);
                       });
      offset += bytes_[owner];
    }
    return packed;
  }

  // The mean of the messages for this rank's chunk, in rank order, coded again.
  at::Tensor reduce_own_chunk(const Bucket& bucket, Feedback& feedback, const at::Tensor& arrived,
                              std::uint64_t key) {
    const Chunk& chunk = chunks_[rank_];
    const Range range = chunk.range();
    at::Tensor mean = at::zeros({range.count()}, bucket.gradient.options());
    const auto values_of = [&](const Piece& piece) {
      return mean.narrow(0, piece.begin - range.begin, piece.count);
    };
    for (std::size_t from = 0; from < chunks_.size(); ++from) {
      for_each_payload(
          bucket, chunk, codecs_,
          arrived.narrow(0, static_cast<std::int64_t>(from) * bytes_[rank_], bytes_[rank_]),
          [&](const Piece& piece, const Codec& codec, const at::Tensor& payload) {
            decode_add(codec, payload, 1, values_of(piece));
          });
    }
    if (chunks_.size() > 1) mean.div_(static_cast<std::int64_t>(chunks_.size()));

    for (const Piece& piece : chunk.pieces) {
      if (bucket.layout.rests(piece.slice)) feedback.owner_hold(piece.begin, piece.count);
    }
    at::Tensor reply = byte_tensor(bytes_[rank_]);
    for_each_payload(bucket, chunk, codecs_, reply,
                     [&](const Piece& piece, const Codec& codec, const at::Tensor& payload) {
                       feedback.owner_compensate(values_of(piece), piece.begin);
                       encode(codec, values_of(piece), payload, {key, piece.begin});
                       feedback.owner_absorb(values_of(piece), piece.begin, codec, payload);
                     });
    return reply;
  }

  void for_each_received(
      const Bucket& bucket,
      const std::function<void(const Piece&, const Codec&, const at::Tensor&)>& body) {
    std::int64_t offset = 0;
    for (std::size_t owner = 0; owner < chunks_.size(); ++owner) {
      for_each_payload(bucket, chunks_[owner], codecs_, received_.narrow(0, offset, bytes_[owner]),
                       body);
      offset += bytes_[owner];
    }
  }

  std::optional<std::size_t> culprit(const Bucket& bucket) {
    std::optional<std::size_t> slice;
    for_each_received(bucket,
                      [&](const Piece& piece, const Codec& codec, const at::Tensor& payload) {
                        if (slice) return;
                        const auto dtype = bucket.gradient.scalar_type();
                        if (!finite(codec, payload, piece.count, dtype, 1)) slice = piece.slice;
                      });
    return slice;
  }

  CodecOfSlice codecs_;
  std::vector<Chunk> chunks_;  // one per owner
  std::size_t rank_;
  Counts bytes_;         // payload bytes of each chunk in this step (frozen slices are left out)
  at::Tensor received_;  // what the owners sent, kept for the commit
  std::optional<std::size_t> non_finite_;
};

}  // namespace

std::unique_ptr<Exchange> make_two_stage_exchange(const Bucket& bucket, const CodecOfSlice& codecs,
                                                  int rank, int size) {
  return std::make_unique<TwoStageExchange>(bucket, codecs, rank, size);
}

}  // namespace thinwire::reference
