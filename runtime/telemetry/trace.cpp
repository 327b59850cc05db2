#include "runtime/telemetry/trace.h"

#include <fmt/format.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "collectives/base/error.h"

namespace thinwire {

void Trace::span(const std::string& row, const std::string& name, Clock::time_point start,
                 Clock::time_point end) {
  const std::lock_guard lock(mutex_);
  spans_.push_back({row, name, start, end});
}

std::vector<Trace::Span> Trace::spans() const {
  const std::lock_guard lock(mutex_);
  return spans_;
}

std::string Trace::events() const {
  using Microseconds = std::chrono::duration<double, std::micro>;
  const std::lock_guard lock(mutex_);
  std::map<std::string, int> rows;
  std::string text;
  const auto add = [&](const nlohmann::json& event) {
    if (!text.empty()) text += ",\n";
    text += event.dump();
  };
  for (const Span& span : spans_) {
    const auto [row, fresh] = rows.emplace(span.row, static_cast<int>(rows.size()));
    if (fresh) {
      add({{"ph", "M"},
           {"name", "thread_name"},
           {"pid", rank_},
           {"tid", row->second},
           {"args", {{"name", span.row}}}});
    }
    // The monotonic clock is one for all processes of a machine, so their rows line up.
    add({{"ph", "X"},
         {"name", span.name},
         {"pid", rank_},
         {"tid", row->second},
         {"ts", Microseconds(span.start.time_since_epoch()).count()},
         {"dur", Microseconds(span.end - span.start).count()}});
  }
  return text;
}

void write_trace(const Trace& trace, Communicator& communicator, const std::string& path) {
  const auto ranks = all_gather_text(communicator, trace.events());
  if (communicator.rank() != 0) return;
  std::ofstream file(path);
  file << "[\n";
  bool first = true;
  for (const auto& events : ranks) {
    if (events.empty()) continue;
    file << (first ? "" : ",\n") << events;
    first = false;
  }
  file << "\n]\n";
  file.close();
  if (!file) throw IoError(fmt::format("cannot write the trace to '{}'; check the folder", path));
}

}  // namespace thinwire
