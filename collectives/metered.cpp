#include "collectives/metered.h"

#include "collectives/operation.h"

namespace thinwire {
namespace {

class MeteredWork final : public Work {
 public:
  MeteredWork(std::unique_ptr<Work> inner, std::shared_ptr<Meter> meter, OperationRecord record,
              std::chrono::milliseconds timeout)
      : Work(timeout),
        inner_(std::move(inner)),
        meter_(std::move(meter)),
        record_(std::move(record)) {}

  using Work::wait;
  void wait(Deadline deadline) override {
    if (reported_) return inner_->wait(deadline);
    reported_ = true;
    meter_->wait(record_);
    try {
      inner_->wait(deadline);
    } catch (...) {
      meter_->fail();
      throw;
    }
    record_.bytes_sent = inner_->bytes_sent();
    meter_->end(record_);
  }
  std::int64_t bytes_sent() const override { return inner_->bytes_sent(); }

 private:
  std::unique_ptr<Work> inner_;
  std::shared_ptr<Meter> meter_;
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
    OperationRecord record = meter_->begin(name(call.kind), bytes);
    return std::make_unique<MeteredWork>(forward(*inner_, call), meter_, std::move(record),
                                         timeout());
  }

  std::unique_ptr<Communicator> inner_;
  std::shared_ptr<Meter> meter_;
};

}  // namespace

OperationRecord Meter::begin(const char* name, std::int64_t bytes_logical) {
  OperationRecord operation;
  operation.name = name;
  operation.bytes_logical = bytes_logical;
  operation.start = Clock::now();
  {
    const std::lock_guard lock(mutex_);
    operation.sequence = ++sequence_;
  }
  if (observer_) observer_->begun(operation);
  return operation;
}

void Meter::wait(const OperationRecord& operation) {
  {
    const std::lock_guard lock(mutex_);
    if (waiting_++ == 0) waiting_since_ = Clock::now();
  }
  if (observer_) observer_->waiting(operation);
}

void Meter::end(OperationRecord operation) {
  {
    const std::lock_guard lock(mutex_);
    stop_waiting_locked();
    operation.end = Clock::now();
    ++total_.calls;
    total_.bytes_logical += operation.bytes_logical;
    total_.bytes_sent += operation.bytes_sent;
    total_.seconds += std::chrono::duration<double>(operation.end - operation.start).count();
  }
  if (observer_) observer_->ended(operation);
  if (finished_) finished_(operation);
}

void Meter::fail() {
  const std::lock_guard lock(mutex_);
  stop_waiting_locked();
}

void Meter::stop_waiting_locked() {
  if (--waiting_ == 0) waited_ += Clock::now() - waiting_since_;
}

double Meter::waited() const {
  const std::lock_guard lock(mutex_);
  const auto now = waiting_ > 0 ? Clock::now() - waiting_since_ : Clock::duration{0};
  return std::chrono::duration<double>(waited_ + now).count();
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
