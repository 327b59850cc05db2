#include "collectives/metered.h"

namespace thinwire {
namespace {

std::int64_t bytes_of(const at::Tensor& tensor) {
  return static_cast<std::int64_t>(tensor.nbytes());
}

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

class MeteredCommunicator final : public Communicator {
 public:
  MeteredCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<Meter> meter)
      : Communicator(inner->rank(), inner->size(), inner->timeout()),
        inner_(std::move(inner)),
        meter_(std::move(meter)) {}

  std::unique_ptr<Work> all_reduce(at::Tensor tensor, ReduceOp op) override {
    return metered("all_reduce", tensor, inner_->all_reduce(tensor, op));
  }
  std::unique_ptr<Work> reduce_scatter(at::Tensor output, at::Tensor input, ReduceOp op,
                                       Counts counts) override {
    return metered("reduce_scatter", input,
                   inner_->reduce_scatter(std::move(output), input, op, std::move(counts)));
  }
  std::unique_ptr<Work> all_gather(at::Tensor output, at::Tensor input, Counts counts) override {
    return metered("all_gather", input,
                   inner_->all_gather(std::move(output), input, std::move(counts)));
  }
  std::unique_ptr<Work> all_to_all(at::Tensor output, at::Tensor input, Counts output_counts,
                                   Counts input_counts) override {
    return metered("all_to_all", input,
                   inner_->all_to_all(std::move(output), input, std::move(output_counts),
                                      std::move(input_counts)));
  }
  std::unique_ptr<Work> broadcast(at::Tensor tensor, int root) override {
    return metered("broadcast", tensor, inner_->broadcast(tensor, root));
  }
  std::unique_ptr<Work> barrier() override { return metered("barrier", {}, inner_->barrier()); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return make_metered(inner_->split(color, key), meter_);
  }
  void abort(const std::string& reason) override { inner_->abort(reason); }

 private:
  std::unique_ptr<Work> metered(const char* name, const at::Tensor& input,
                                std::unique_ptr<Work> work) {
    return std::make_unique<MeteredWork>(std::move(work), meter_, name,
                                         input.defined() ? bytes_of(input) : 0, timeout());
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
