#include "launch/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

namespace thinwire {
namespace {

std::string duration(double seconds) {
  // Beyond this a wrong estimate is all that it can be, and it fits an integer.
  const auto whole = static_cast<std::int64_t>(std::min(std::ceil(seconds), 1e9));
  const std::int64_t minutes = whole / 60;
  if (minutes < 60) return fmt::format("{}:{:02}", minutes, whole % 60);
  return fmt::format("{}:{:02}:{:02}", minutes / 60, minutes % 60, whole % 60);
}

std::string bytes(double count) {
  if (count < 1e3) return fmt::format("{:.0f} B", count);
  if (count < 1e6) return fmt::format("{:.1f} kB", count / 1e3);
  if (count < 1e9) return fmt::format("{:.1f} MB", count / 1e6);
  return fmt::format("{:.1f} GB", count / 1e9);
}

}  // namespace

std::string format_progress(const ProgressReport& report) {
  std::string text =
      fmt::format("step {}/{}  epoch {:.2f}  loss {:.4f}  {:.0f} samples/s", report.step,
                  report.total_steps, report.epoch, report.loss, report.samples_per_second);
  if (report.seconds_left >= 0) text += "  ETA " + duration(report.seconds_left);
  if (report.bytes_per_step > 0) {
    text += fmt::format("  {}/step ({:.1f}x)", bytes(report.bytes_per_step), report.ratio);
  }
  return text;
}

Progress::Mode Progress::mode_for(int descriptor) {
  return isatty(descriptor) == 1 ? Mode::rewrite : Mode::lines;
}

std::size_t Progress::columns_of(int descriptor) {
  winsize size{};
  const bool known = ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

Progress::~Progress() {
  end_report();
}

void Progress::report(const ProgressReport& report) {
  std::string text = format_progress(report);
  if (mode_ == Mode::lines) {
    write_(text + "\n");
    return;
  }
  text.resize(std::min(text.size(), columns_ - 1));
  // Blanks cover what is left of a longer report.
  write_(fmt::format("\r{:<{}}", text, open_));
  open_ = text.size();
}

void Progress::line(const std::string& text) {
  end_report();
  write_(text + "\n");
}

void Progress::end_report() {
  if (open_ > 0) write_("\n");
  open_ = 0;
}

}  // namespace thinwire
