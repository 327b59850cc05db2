#include "collectives/metered.h"

#include "collectives/operation.h"

namespace thinwire {
namespace {

class MeteredWork final : public Work {
 public:
  MeteredWork(std::unique_ptr<Work> inner, std::shared_ptr<Meter> meter, const char* name,
              std::int64_t bytes_logical, std::chrono::milliseconds timeout)
      : Work(timeout),
        inner_(std::move(inner)),
        meter_(std::move(meter)),
        bytes_logical_(bytes_logical),
        record_{name, 0, Clock::now(), {}} {}

  using Work::wait;
  void wait(Deadline deadline) override {
    inner_->wait(deadline);
    if (reported_) return;
    reported_ = true;
    record_.bytes_sent = inner_->bytes_sent();
    record_.end = Clock::now();
    meter_->record(record_, bytes_logical_);
  }
  std::int64_t bytes_sent() const override { return inner_->bytes_sent(); }

 private:
  std::unique_ptr<Work> inner_;
  std::shared_ptr<Meter> meter_;
  std::int64_t bytes_logical_;
  OperationRecord record_;
  bool reported_ = false;
};

class MeteredCommunicator final : public OperationCommunicator {
 public:
  MeteredCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<Meter> meter)
      : OperationCommunicator(inner->rank(), inner->size(), inner->timeout()),
        inner_(std::move(inner)),
        meter_(std::move(meter)) {}

  std::unique_ptr<Communicator> split(int color, int key) override {
    return make_metered(inner_->split(color, key), meter_);
  }
  void abort(const std::string& reason) override { inner_->abort(reason); }

 private:
  std::unique_ptr<Work> post(Operation call) override {
    const std::int64_t bytes =
        call.input.defined() ? static_cast<std::int64_t>(call.input.nbytes()) : 0;
    return std::make_unique<MeteredWork>(forward(*inner_, call), meter_, name(call.kind), bytes,
                                         timeout());
  }

  std::unique_ptr<Communicator> inner_;
  std::shared_ptr<Meter> meter_;
};

}  // namespace

void Meter::record(const OperationRecord& record, std::int64_t bytes_logical) {
  {
    const std::lock_guard lock(mutex_);
    ++total_.calls;
    total_.bytes_logical += bytes_logical;
    total_.bytes_sent += record.bytes_sent;
    total_.seconds += std::chrono::duration<double>(record.end - record.start).count();
  }
  if (observer_) observer_(record);
}

Traffic Meter::total() const {
  const std::lock_guard lock(mutex_);
  return total_;
}

std::unique_ptr<Communicator> make_metered(std::unique_ptr<Communicator> inner,
                                           std::shared_ptr<Meter> meter) {
  return std::make_unique<MeteredCommunicator>(std::move(inner), std::move(meter));
}

}  // namespace thinwire
