// How payload bytes become one mean.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "collectives/communicator.h"

namespace thinwire {

// Payload that travels in one message to each owner: consecutive in the packed message of a bucket,
// owner by owner.
struct Segment {
  std::int64_t first_block = 0;  // in the bucket's table
  std::int64_t block_count = 0;
  std::int64_t own_first_block = 0;  // of those that this rank owns
  std::int64_t own_block_count = 0;
  std::int64_t begin = 0;      // bytes, in the packed message
  std::int64_t own_begin = 0;  // bytes, in the packed message, of this rank's blocks
  std::int64_t own_sent = 0;   // bytes of this rank's blocks in segments before this one
  Counts bytes;                // for each owner; where nobody owns a part one number
  std::int64_t total = 0;
};

// The packed messages of one bucket, in the memory of the queue; kept from step to step.
struct PayloadBuffers {
  at::Tensor message;   // this rank's, to all owners
  at::Tensor arrived;   // with owners: all ranks' messages to this one, segment by segment
  at::Tensor reply;     // with owners: what this rank sends of the part that it owns
  at::Tensor received;  // what came back
};

// Where the payload of a bucket lies that the estimate is decoded from: `ranks` packed messages,
// `stride` bytes apart, as the blocks of the segment count bytes.
struct Received {
  const char* payload = nullptr;
  std::int64_t stride = 0;
  std::int32_t ranks = 1;
};

// One encoded segment on its way, and what this rank does with it on the way.
struct Shipment {
  const Segment* segment = nullptr;
  PayloadBuffers* buffers = nullptr;
  std::size_t owner = 0;          // which of the segment's parts is this rank's
  std::function<void()> reduce;   // with owners: `arrived` to `reply`, of this rank's part
  std::function<void()> take_in;  // `received` has come
};

// The way of payload bytes from every rank's message to what the estimate is decoded from, whatever
// they mean. Shipments go in the order in which they are sent, several at a time; all ranks send
// the same ones in the same order. One object per rank, for all buckets.
class Exchange {
 public:
  virtual ~Exchange() = default;

  // Whether each part has an owner, who averages what all sent of it and codes it again.
  virtual bool has_owners() const = 0;
  // Makes the buffers as large as messages of `bytes`, of which this rank owns `own_bytes`, need.
  virtual void reserve(PayloadBuffers& buffers, std::int64_t bytes, std::int64_t own_bytes,
                       int ranks) const = 0;
  // Starts the shipment, and goes on with earlier ones.
  virtual void send(Shipment shipment, Communicator& communicator) = 0;
  // After a bucket's last shipment: starts every operation that is still to come of it.
  virtual void flush(Communicator& communicator) = 0;
  // Takes in everything that was sent.
  virtual void settle() = 0;
  virtual Received received(const PayloadBuffers& buffers, const Segment& segment,
                            int ranks) const = 0;
};

// All-to-all, the owners' averages, all-gather.
std::unique_ptr<Exchange> make_two_stage_exchange();
// Every rank's message goes to all, who average for themselves.
std::unique_ptr<Exchange> make_all_gather_exchange();

// The tensor becomes one of `count` bytes, if it is not, on the device of `like`.
void reserve_bytes(at::Tensor& tensor, std::int64_t count, const at::Tensor& like);

}  // namespace thinwire
