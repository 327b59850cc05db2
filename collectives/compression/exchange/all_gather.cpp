#include <deque>
#include <utility>

#include "collectives/compression/exchange/exchange.h"

namespace thinwire {
namespace {

// Shipments on their way before the oldest is waited for.
constexpr std::size_t kGathered = 8;

class AllGather final : public Exchange {
 public:
  bool has_owners() const override { return false; }

  void reserve(PayloadBuffers& buffers, std::int64_t bytes, std::int64_t,
               int ranks) const override {
    reserve_bytes(buffers.received, bytes * ranks, buffers.message);
  }

  void send(Shipment shipment, Communicator& communicator) override {
    const Segment& segment = *shipment.segment;
    const auto ranks = communicator.size();
    const PayloadBuffers& buffers = *shipment.buffers;
    auto work = communicator.all_gather(
        buffers.received.narrow(0, segment.begin * ranks, segment.total * ranks),
        buffers.message.narrow(0, segment.begin, segment.total),
        Counts(static_cast<std::size_t>(ranks), segment.total));
    gathered_.push_back({std::move(shipment), std::move(work)});
    while (gathered_.size() > kGathered) take_in_oldest();
  }

  void flush(Communicator&) override {}

  void settle() override {
    while (!gathered_.empty()) take_in_oldest();
  }

  // The ranks' messages of one segment lie behind each other.
  Received received(const PayloadBuffers& buffers, const Segment& segment,
                    int ranks) const override {
    const auto* all = static_cast<const char*>(buffers.received.const_data_ptr());
    return {all + segment.begin * (ranks - 1), segment.total, ranks};
  }

 private:
  struct InFlight {
    Shipment shipment;
    std::unique_ptr<Work> work;
  };

  void take_in_oldest() {
    const InFlight next = std::move(gathered_.front());
    gathered_.pop_front();
    next.work->wait();
    next.shipment.take_in();
  }

  std::deque<InFlight> gathered_;
};

}  // namespace

std::unique_ptr<Exchange> make_all_gather_exchange() {
  return std::make_unique<AllGather>();
}

}  // namespace thinwire
