#include "runtime/telemetry/metrics.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include <nlohmann/json.hpp>
#include <utility>

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
          {"slowest_rank", report.slowest_rank},
          {"slowest_ratio", report.slowest_ratio}};
}

std::string to_text(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

// The whole lines of the file at `path` that report steps up to `step`; none where there is no
// file.
std::string lines_up_to(const std::string& path, std::int64_t step) {
  std::string kept;
  std::ifstream file(path);
  for (std::string line; step > 0 && std::getline(file, line);) {
    const auto report = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!report.is_object() || report.contains("event")) continue;
    if (report.value("step", step + 1) <= step) kept += line + '\n';
  }
  return kept;
}

}  // namespace

MetricsFile::MetricsFile(const std::string& path, std::int64_t resumed_at) : path_(path) {
  const std::string kept = lines_up_to(path, resumed_at);
  const std::string beside = path + ".partial";
  file_.open(beside, std::ios::trunc);
  file_ << kept << std::flush;
  if (!file_ || std::rename(beside.c_str(), path.c_str()) != 0) fail();
}

void MetricsFile::write(const StepReport& report) {
  line(to_text(as_json(report)));
}

void MetricsFile::write(const EndReport& report) {
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

std::string MetricsFile::take_warning() {
  return std::exchange(warning_, {});
}

void MetricsFile::line(const std::string& text) {
  if (failed_) return;
  file_ << text << '\n' << std::flush;
  if (!file_) fail();
}

void MetricsFile::fail() {
  failed_ = true;
  warning_ = fmt::format("cannot write metrics to {}: {}; training goes on, numbers are missing",
                         path_, std::strerror(errno));
}

}  // namespace thinwire
