#include "runtime/telemetry/metrics.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>

namespace thinwire {
namespace {

nlohmann::ordered_json as_json(const StepReport& report) {
  return {{"step", report.step},
          {"epoch", report.epoch},
          {"loss", report.loss},
          {"lr", report.lr},
          {"samples_per_second", report.samples_per_second},
          {"bytes_dense", report.bytes_dense},
          {"bytes_wire", report.bytes_wire},
          {"residual_ratio", report.residual_ratio},
          {"skipped", report.skipped},
          {"steps", report.steps},
          {"compressed_steps", report.compressed_steps},
          {"step_seconds", report.step_seconds},
          {"arithmetic_seconds", report.arithmetic_seconds},
          {"waited_seconds", report.waited_seconds},
          {"clip_scale", report.clip_scale},
          {"slowest_rank", report.slowest_rank},
          {"slowest_ratio", report.slowest_ratio}};
}

std::string to_text(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

// What a line of metrics is.
enum class Line { step, event, other };

struct Kind {
  Line line = Line::other;
  std::int64_t step = 0;
};

Kind kind_of(const std::string& text) {
  const auto report = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!report.is_object()) return {};
  const auto step = report.find("step");
  if (step == report.end() || !step->is_number_integer()) return {};
  return {report.contains("event") ? Line::event : Line::step, step->get<std::int64_t>()};
}

// Shows the lines of a plain file one by one, the last one also if it has no end, until `look`
// returns false or a line is longer than any of ours. Returns whether it came to the end.
bool each_line(const std::string& path,
               const std::function<bool(const std::string& line, bool has_end)>& look) {
  constexpr std::size_t kLongest = 1 << 16;
  // A pipe would wait for a writer.
  const FileDescriptor file(
      uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC); }));
  struct stat status {};
  if (!file.open() || ::fstat(file.get(), &status) < 0 || !S_ISREG(status.st_mode)) return false;
  std::string rest;
  std::string block(kLongest, '\0');
  while (true) {
    const ssize_t count =
        uninterrupted([&] { return ::read(file.get(), block.data(), block.size()); });
    if (count < 0) return false;
    if (count == 0) return rest.empty() || look(rest, false);
    rest.append(block, 0, static_cast<std::size_t>(count));
    std::size_t begin = 0;
    for (std::size_t end; (end = rest.find('\n', begin)) != std::string::npos; begin = end + 1) {
      if (!look(rest.substr(begin, end - begin), true)) return false;
    }
    rest.erase(0, begin);
    if (rest.size() > kLongest) return false;
  }
}

// The lines of the file at `path` that report steps up to `step`; none where there is no file.
std::string lines_up_to(const std::string& path, std::int64_t step) {
  std::string kept;
  if (step == 0) return kept;
  each_line(path, [&](const std::string& line, bool) {
    const Kind kind = kind_of(line);
    if (kind.line == Line::step && kind.step <= step) kept += line + '\n';
    return true;
  });
  return kept;
}

// Whether the file at `path` holds only metrics and ends with the end of a run at `step`.
bool has_end_of(const std::string& path, std::int64_t step) {
  Kind last;
  const bool pure = each_line(path, [&](const std::string& line, bool has_end) {
    last = kind_of(line);
    return has_end && last.line != Line::other;
  });
  return pure && last.line == Line::event && last.step == step;
}

}  // namespace

bool holds_only_metrics(const std::string& path) {
  const auto may_be_cut_off = [](const std::string& line) {
    const std::string_view heads[] = {R"({"step":)", R"({"event":)"};
    return std::any_of(std::begin(heads), std::end(heads), [&](std::string_view head) {
      return line.starts_with(head.substr(0, line.size()));
    });
  };
  return each_line(path, [&](const std::string& line, bool has_end) {
    return kind_of(line).line != Line::other || (!has_end && may_be_cut_off(line));
  });
}

MetricsFile::MetricsFile(const std::string& path, std::int64_t resumed_at,
                         std::function<void()> before_anew)
    : path_(path),
      resumed_at_(resumed_at),
      is_whole_(has_end_of(path, resumed_at)),
      file_("metrics", "numbers are missing", std::move(before_anew)) {
  if (!is_whole_) begin();
}

void MetricsFile::begin() {
  is_whole_ = false;
  file_.replace(path_, lines_up_to(path_, resumed_at_));
}

void MetricsFile::write(const StepReport& report) {
  if (is_whole_) begin();
  line(to_text(as_json(report)));
}

void MetricsFile::write(const EndReport& report) {
  if (is_whole_ && report.last.steps == 0) return;
  if (is_whole_) begin();
  nlohmann::ordered_json end{{"event", "end"}};
  end.update(as_json(report.last));
  end["test_accuracy"] = report.test_accuracy;
  end["test_loss"] = report.test_loss;
  end["parameters_hash"] = report.parameters_hash;
  end["seconds"] = report.seconds;
  end["stopped"] = report.stopped;
  end["checkpoint"] = report.checkpoint ? nlohmann::ordered_json(*report.checkpoint) : nullptr;
  line(to_text(end));
}

void MetricsFile::line(const std::string& text) {
  file_.append(text + '\n', [] { return std::string(); });
}

}  // namespace thinwire
