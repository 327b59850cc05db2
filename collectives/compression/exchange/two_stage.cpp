#include <ATen/ops/empty.h>

#include <deque>
#include <utility>

#include "collectives/compression/exchange/exchange.h"

namespace thinwire {
namespace {

// Shipments on their way to their owners before the oldest is reduced, and on their way back before
// the oldest is waited for.
constexpr std::size_t kScattered = 4;
constexpr std::size_t kGathered = 8;

class TwoStage final : public Exchange {
 public:
  bool has_owners() const override { return true; }

  void reserve(PayloadBuffers& buffers, std::int64_t bytes, std::int64_t own_bytes,
               int ranks) const override {
    reserve_bytes(buffers.received, bytes, buffers.message);
    reserve_bytes(buffers.arrived, own_bytes * ranks, buffers.message);
    reserve_bytes(buffers.reply, own_bytes, buffers.message);
  }

  void send(Shipment shipment, Communicator& communicator) override {
    const Segment& segment = *shipment.segment;
    const auto ranks = communicator.size();
    const std::int64_t own = segment.bytes[shipment.owner];
    const PayloadBuffers& buffers = *shipment.buffers;
    auto work =
        communicator.all_to_all(buffers.arrived.narrow(0, segment.own_sent * ranks, own * ranks),
                                buffers.message.narrow(0, segment.begin, segment.total),
                                Counts(static_cast<std::size_t>(ranks), own), segment.bytes);
    scattered_.push_back({std::move(shipment), std::move(work)});
    if (scattered_.size() > kScattered) reduce_oldest(communicator);
    while (gathered_.size() > kGathered) take_in_oldest();
  }

  void flush(Communicator& communicator) override {
    while (!scattered_.empty()) reduce_oldest(communicator);
  }

  void settle() override {
    while (!gathered_.empty()) take_in_oldest();
  }

  Received received(const PayloadBuffers& buffers, const Segment&, int) const override {
    return {static_cast<const char*>(buffers.received.const_data_ptr()), 0, 1};
  }

 private:
  struct InFlight {
    Shipment shipment;
    std::unique_ptr<Work> work;
  };

  void reduce_oldest(Communicator& communicator) {
    InFlight next = std::move(scattered_.front());
    scattered_.pop_front();
    next.work->wait();
    next.shipment.reduce();
    const Segment& segment = *next.shipment.segment;
    const PayloadBuffers& buffers = *next.shipment.buffers;
    next.work = communicator.all_gather(
        buffers.received.narrow(0, segment.begin, segment.total),
        buffers.reply.narrow(0, segment.own_sent, segment.bytes[next.shipment.owner]),
        segment.bytes);
    gathered_.push_back(std::move(next));
  }

  void take_in_oldest() {
    const InFlight next = std::move(gathered_.front());
    gathered_.pop_front();
    next.work->wait();
    next.shipment.take_in();
  }

  std::deque<InFlight> scattered_;  // to their owners
  std::deque<InFlight> gathered_;   // back to all
};

}  // namespace

std::unique_ptr<Exchange> make_two_stage_exchange() {
  return std::make_unique<TwoStage>();
}

void reserve_bytes(at::Tensor& tensor, std::int64_t count, const at::Tensor& like) {
  if (tensor.defined() && tensor.numel() == count) return;
  tensor = at::empty({count}, like.options().dtype(at::kByte));
}

}  // namespace thinwire
