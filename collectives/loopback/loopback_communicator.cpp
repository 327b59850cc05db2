#include "collectives/loopback/loopback_communicator.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <functional>

#include "collectives/base/error.h"
#include "collectives/operation.h"

namespace thinwire {
namespace {

// So many inputs of all_to_all are kept for an all_gather that answers them; older ones are
// dropped.
constexpr std::size_t kRemembered = 64;

// Fills `output` with copies of `input`, one behind the other.
void repeat(const at::Tensor& input, const at::Tensor& output) {
  auto* to = static_cast<char*>(output.data_ptr());
  const std::size_t piece = input.nbytes();
  const std::size_t all = output.nbytes();
  for (std::size_t done = 0; piece > 0 && done < all; done += piece) {
    std::memcpy(to + done, input.const_data_ptr(), std::min(piece, all - done));
  }
}

class LoopbackWork final : public Work {
 public:
  LoopbackWork(std::function<void()> copy, std::int64_t bytes_sent,
               std::chrono::milliseconds timeout)
      : Work(timeout), copy_(std::move(copy)), bytes_sent_(bytes_sent) {}

  using Work::wait;
  void wait(Deadline) override {
    if (copy_) copy_();
    copy_ = nullptr;
  }
  std::int64_t bytes_sent() const override { return bytes_sent_; }

 private:
  std::function<void()> copy_;
  std::int64_t bytes_sent_;
};

class LoopbackCommunicator final : public OperationCommunicator {
 public:
  using OperationCommunicator::OperationCommunicator;

  std::unique_ptr<Communicator> split(int, int) override {
    return make_loopback_communicator(rank(), size(), timeout());
  }
  void abort(const std::string&) override { aborted_ = true; }

 private:
  std::unique_ptr<Work> post(Operation call) override {
    if (aborted_) throw PeerLost("the loopback group was aborted");
    const std::int64_t bytes = direct_bytes_sent(call, rank(), size());
    return std::make_unique<LoopbackWork>(answer(call), bytes, timeout());
  }

  std::function<void()> answer(const Operation& call) {
    const auto mine = static_cast<std::size_t>(rank());
    const auto own = [&](const at::Tensor& tensor, const Counts& counts) {
      return tensor.flatten().narrow(0, offsets_of(counts)[mine], counts[mine]);
    };
    switch (call.kind) {
      case OperationKind::reduce_scatter:
        return copying(own(call.input, call.input_counts), call.output);
      case OperationKind::all_to_all:
        remember(call.input);
        return copying(own(call.input, call.input_counts), call.output);
      case OperationKind::all_gather: {
        const at::Tensor others = recall(call.output);
        const at::Tensor place = own(call.output, call.output_counts);
        return [call, others, place] {
          // The input may be its own place in the output.
          const at::Tensor input = call.input.clone();
          repeat(others.defined() ? others : input, call.output);
          repeat(input, place);
        };
      }
      default:
        return {};
    }
  }

  static std::function<void()> copying(const at::Tensor& from, const at::Tensor& to) {
    return [from, to] { repeat(from, to); };
  }

  void remember(const at::Tensor& messages) {
    messages_.push_back(messages);
    if (messages_.size() > kRemembered) messages_.pop_front();
  }
  // The oldest messages of the size of `output`; undefined if there are none.
  at::Tensor recall(const at::Tensor& output) {
    const auto found = std::find_if(
        messages_.begin(), messages_.end(),
        [&](const at::Tensor& messages) { return messages.nbytes() == output.nbytes(); });
    if (found == messages_.end()) return {};
    const at::Tensor result = *found;
    messages_.erase(found);
    return result;
  }

  std::deque<at::Tensor> messages_;
  std::atomic<bool> aborted_ = false;
};

}  // namespace

std::unique_ptr<Communicator> make_loopback_communicator(int rank, int size,
                                                         std::chrono::milliseconds timeout) {
  return std::make_unique<LoopbackCommunicator>(rank, size, timeout);
}

}  // namespace thinwire
