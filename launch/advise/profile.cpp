#include "launch/advise/profile.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "collectives/loopback/loopback_communicator.h"
#include "collectives/metered.h"
#include "runtime/trainer/trainer.h"

namespace thinwire {
namespace {

constexpr int kWarmUp = 3;

class Silence final : public TrainerObserver {
 public:
  void on_line(const std::string&) override {}
  void on_step(const StepReport&) override {}
};

// A moment on the communication thread.
struct Mark {
  enum class Kind { begin, post, wait, done, end };  // of a span or an operation
  Kind kind = Kind::begin;
  Clock::time_point time;
  OperationRecord operation = {};
};

class Recorder final : public OperationObserver {
 public:
  void begun(const OperationRecord& operation) override { add(Mark::Kind::post, operation); }
  void waiting(const OperationRecord& operation) override { add(Mark::Kind::wait, operation); }
  void ended(const OperationRecord& operation) override { add(Mark::Kind::done, operation); }

  std::vector<Mark> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(marks_, {});
  }

 private:
  void add(Mark::Kind kind, const OperationRecord& operation) {
    const std::lock_guard lock(mutex_);
    marks_.push_back({kind, Clock::now(), operation});
  }

  std::mutex mutex_;
  std::vector<Mark> marks_;
};

double between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// `marks` are those of one step that began at `start`, of operations and of spans.
std::vector<TimelineEvent> events_of(std::vector<Mark> marks, Clock::time_point start) {
  using Kind = TimelineEvent::Kind;
  std::stable_sort(marks.begin(), marks.end(),
                   [](const Mark& a, const Mark& b) { return a.time < b.time; });
  std::map<std::int64_t, double> bytes;  // known when an operation is done
  for (const Mark& mark : marks) {
    if (mark.kind != Mark::Kind::done) continue;
    bytes[mark.operation.sequence] = static_cast<double>(mark.operation.bytes_sent);
  }
  std::vector<TimelineEvent> events;
  std::map<std::int64_t, std::size_t> number;
  bool inside = false;  // a span
  auto last = start;
  for (const Mark& mark : marks) {
    const bool begins = mark.kind == Mark::Kind::begin;
    if (begins || (mark.kind == Mark::Kind::post && !inside)) {
      events.push_back({Kind::ready, between(start, mark.time), {}, 0, 0});
    } else if (mark.kind != Mark::Kind::done) {
      events.push_back({Kind::compute, between(last, mark.time), {}, 0, 0});
    }
    const std::int64_t sequence = mark.operation.sequence;
    if (mark.kind == Mark::Kind::post) {
      number.emplace(sequence, number.size());
      events.push_back({Kind::post, 0, mark.operation.name, bytes[sequence], 0});
    }
    if (mark.kind == Mark::Kind::wait) {
      events.push_back({Kind::wait, 0, {}, 0, number.at(sequence)});
    }
    if (begins) inside = true;
    if (mark.kind == Mark::Kind::end) inside = false;
    last = mark.time;
  }
  return events;
}

// A step that went from `start` to `end`.
Timeline timeline_of(std::vector<Mark> marks, const std::vector<Trace::Span>& spans,
                     Clock::time_point start, Clock::time_point end) {
  auto backward_end = start;
  for (const Trace::Span& span : spans) {
    if (span.name == "backward") backward_end = std::max(backward_end, span.end);
    if (span.row != "communication") continue;
    marks.push_back({Mark::Kind::begin, span.start});
    marks.push_back({Mark::Kind::end, span.end});
  }
  auto both_end = backward_end;
  for (const Mark& mark : marks) both_end = std::max(both_end, mark.time);
  return {events_of(std::move(marks), start), between(start, backward_end), between(both_end, end)};
}

}  // namespace

Profile measure_profile(Communicator& ranks, const Model& model, const DataSplit& data,
                        const TrainOptions& options, std::int64_t steps,
                        const std::shared_ptr<Team>& team, const Kernels<float>& kernels) {
  Trace trace(ranks.rank());
  Recorder recorder;
  const auto meter =
      std::make_shared<Meter>(std::function<void(const OperationRecord&)>{}, &recorder);
  const auto alone =
      make_metered(make_loopback_communicator(ranks.rank(), ranks.size(), ranks.timeout()), meter);
  PosixFileSystem files;
  Silence silence;
  const TrainerDevice host = host_device(*alone, team, kernels);
  Trainer trainer({.model = model,
                   .data = data,
                   .communicator = *alone,
                   .meter = *meter,
                   .files = files,
                   .observer = silence,
                   .device = &host,
                   .trace = &trace},
                  options);
  ranks.barrier()->wait();
  for (int i = 0; i < kWarmUp; ++i) trainer.run_step();

  Profile profile;
  for (std::int64_t i = 0; i < steps; ++i) {
    recorder.take();
    const std::size_t spans_before = trace.spans().size();
    const double arithmetic_before = trainer.arithmetic_seconds();
    const std::int64_t bytes_before = meter->total().bytes_sent;
    const auto start = Clock::now();
    trainer.run_step();
    const auto end = Clock::now();
    const std::vector<Trace::Span> spans = trace.spans();
    profile.steps.push_back(
        {.timeline = timeline_of(
             recorder.take(),
             {spans.begin() + static_cast<std::ptrdiff_t>(spans_before), spans.end()}, start, end),
         .seconds = between(start, end),
         .arithmetic_seconds = trainer.arithmetic_seconds() - arithmetic_before,
         .wire_bytes = static_cast<double>(meter->total().bytes_sent - bytes_before)});
  }
  return profile;
}

}  // namespace thinwire
