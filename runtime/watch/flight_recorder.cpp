#include "runtime/watch/flight_recorder.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <utility>

namespace thinwire {
namespace {

double seconds(Clock::time_point time) {
  return std::chrono::duration<double>(time.time_since_epoch()).count();
}

std::string with_bucket(const std::string& name, std::optional<std::int64_t> bucket) {
  return bucket ? fmt::format("{} of bucket {}", name, *bucket) : name;
}

}  // namespace

std::string describe(const Activity& activity) {
  std::string text = activity.step > 0 ? fmt::format("step {}, ", activity.step) : "";
  if (activity.operations == 0) return text + activity.doing;
  if (activity.waiting) {
    const double waited = std::chrono::duration<double>(*activity.waiting).count();
    text += fmt::format("waiting {:.1f} s in ", waited);
  } else {
    text += activity.doing + " after ";
  }
  return text + fmt::format("{} (operation {})", activity.operation, activity.operations);
}

void FlightRecorder::set_step(std::int64_t step) {
  const std::lock_guard lock(mutex_);
  step_ = step;
}

void FlightRecorder::set_bucket(std::optional<std::int64_t> bucket) {
  const std::lock_guard lock(mutex_);
  bucket_ = bucket;
}

std::string FlightRecorder::set_doing(std::string doing) {
  const std::lock_guard lock(mutex_);
  return std::exchange(doing_, std::move(doing));
}

void FlightRecorder::begun(const OperationRecord& operation) {
  const std::lock_guard lock(mutex_);
  ++begun_;
  entries_.push_back({operation, bucket_, step_, false});
  if (entries_.size() > capacity_) entries_.pop_front();
}

void FlightRecorder::waiting(const OperationRecord& operation) {
  const std::lock_guard lock(mutex_);
  waiting_for_ = operation.sequence;
  waiting_since_ = Clock::now();
}

void FlightRecorder::ended(const OperationRecord& operation) {
  const std::lock_guard lock(mutex_);
  if (waiting_for_ == operation.sequence) waiting_for_ = 0;
  const auto entry = std::find_if(entries_.rbegin(), entries_.rend(), [&](const Entry& other) {
    return other.operation.sequence == operation.sequence;
  });
  if (entry == entries_.rend()) return;
  entry->operation = operation;
  entry->ended = true;
}

Activity FlightRecorder::activity() const {
  const std::lock_guard lock(mutex_);
  Activity activity{.step = step_, .doing = doing_, .operations = begun_, .operation = {}};
  if (!entries_.empty()) {
    activity.operation = with_bucket(entries_.back().operation.name, entries_.back().bucket);
  }
  if (waiting_for_ != 0) {
    activity.waiting =
        std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - waiting_since_);
  }
  return activity;
}

std::string FlightRecorder::json(const std::string& reason) const {
  using nlohmann::ordered_json;
  const std::lock_guard lock(mutex_);
  ordered_json operations = ordered_json::array();
  for (const Entry& entry : entries_) {
    const OperationRecord& operation = entry.operation;
    operations.push_back(
        {{"sequence", operation.sequence},
         {"name", operation.name},
         {"bytes", operation.bytes_logical},
         {"bytes_sent", operation.bytes_sent},
         {"bucket", entry.bucket ? ordered_json(*entry.bucket) : ordered_json()},
         {"step", entry.step},
         {"start", seconds(operation.start)},
         {"end", entry.ended ? ordered_json(seconds(operation.end)) : ordered_json()}});
  }
  const ordered_json flight{
      {"rank", rank_},
      {"reason", reason},
      {"time", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))},
      {"now", seconds(Clock::now())},
      {"step", step_},
      {"doing", doing_},
      {"operations", std::move(operations)}};
  return flight.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

void write_flight(FileSystem& files, const std::string& output, int rank,
                  const FlightRecorder& recorder, const std::string& reason) {
  const std::string folder = output + "/flight";
  files.make_directories(folder);
  write_durably(files, folder, fmt::format("rank-{}.json", rank), recorder.json(reason));
}

}  // namespace thinwire
