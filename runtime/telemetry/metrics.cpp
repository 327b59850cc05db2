#include "runtime/telemetry/metrics.h"

#include <fmt/format.h>

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
          {"skipped", report.skipped}};
}

}  // namespace

MetricsFile::MetricsFile(const std::string& path, MetricsStart start)
    : path_(path), mode_(start == MetricsStart::anew ? std::ios::trunc : std::ios::app) {}

void MetricsFile::write(const StepReport& report) {
  line(as_json(report).dump());
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
  line(end.dump());
}

std::string MetricsFile::take_warning() {
  return std::exchange(warning_, {});
}

void MetricsFile::line(const std::string& text) {
  if (failed_) return;
  if (!file_.is_open()) file_.open(path_, mode_);
  file_ << text << '\n' << std::flush;
  if (file_) return;
  failed_ = true;
  warning_ = fmt::format(
      "cannot write metrics to {}: the disk may be full; training goes on, "
      "numbers from here on are missing",
      path_);
}

}  // namespace thinwire
