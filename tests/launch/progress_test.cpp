#include "launch/progress.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace thinwire {
namespace {

const ProgressReport kReport{.step = 120,
                             .total_steps = 938,
                             .epoch = 0.128,
                             .loss = 0.43121,
                             .samples_per_second = 5120.4,
                             .seconds_left = 83,
                             .bytes_per_step = 12345,
                             .ratio = 31.24};

TEST(Progress, Format) {
  EXPECT_EQ(
      format_progress(kReport),
      "step 120/938  epoch 0.13  loss 0.4312  5120 samples/s  ETA 1:23  12.3 kB/step (31.2x)");
}

TEST(Progress, WhatIsUnknownOrNothingIsLeftOut) {
  ProgressReport report = kReport;
  report.seconds_left = -1;
  report.bytes_per_step = 0;
  EXPECT_EQ(format_progress(report), "step 120/938  epoch 0.13  loss 0.4312  5120 samples/s");
}

TEST(Progress, DurationsAndBytesAtTheirEdges) {
  const auto with = [](double seconds, double bytes) {
    ProgressReport report;
    report.seconds_left = seconds;
    report.bytes_per_step = bytes;
    const std::string text = format_progress(report);
    return text.substr(text.find("ETA"));
  };
  EXPECT_EQ(with(0, 999), "ETA 0:00  999 B/step (1.0x)");
  EXPECT_EQ(with(58.5, 1000), "ETA 0:59  1.0 kB/step (1.0x)");
  EXPECT_EQ(with(60, 1.5e6), "ETA 1:00  1.5 MB/step (1.0x)");
  EXPECT_EQ(with(3599, 2e9), "ETA 59:59  2.0 GB/step (1.0x)");
  EXPECT_EQ(with(3600, 1), "ETA 1:00:00  1 B/step (1.0x)");
  EXPECT_EQ(with(100 * 3600, 1), "ETA 100:00:00  1 B/step (1.0x)");
  EXPECT_EQ(with(std::numeric_limits<double>::infinity(), 1), "ETA 277777:46:40  1 B/step (1.0x)");
}

std::string report_of(std::int64_t step) {
  ProgressReport report;
  report.step = step;
  report.seconds_left = -1;
  return format_progress(report);
}

Progress::Write into(std::string& out) {
  return [&out](const std::string& text) { out += text; };
}

void write_run(Progress& progress) {
  for (const std::int64_t step : {100, 5}) {
    ProgressReport report;
    report.step = step;
    report.seconds_left = -1;
    progress.report(report);
  }
  progress.line("accuracy 0.9");
  progress.report({.step = 7, .seconds_left = -1});
}

TEST(Progress, LinesOutsideATerminal) {
  std::string out;
  {
    Progress progress(into(out), Progress::Mode::lines, 10);
    write_run(progress);
  }
  EXPECT_EQ(out,
            fmt::format("{}\n{}\naccuracy 0.9\n{}\n", report_of(100), report_of(5), report_of(7)));
}

TEST(Progress, OneLineIsRewrittenOnATerminal) {
  std::string out;
  {
    Progress progress(into(out), Progress::Mode::rewrite, 80);
    write_run(progress);
  }
  // Two blanks cover what "100" has more than "5".
  EXPECT_EQ(out, fmt::format("\r{}\r{}  \naccuracy 0.9\n\r{}\n", report_of(100), report_of(5),
                             report_of(7)));
}

TEST(Progress, RewrittenLinesDoNotWrap) {
  std::string out;
  {
    Progress progress(into(out), Progress::Mode::rewrite, 8);
    progress.report(kReport);
  }
  EXPECT_EQ(out, "\rstep 12\n");
}

TEST(Progress, AFileIsNoTerminal) {
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(Progress::mode_for(fileno(file)), Progress::Mode::lines);
  EXPECT_EQ(Progress::columns_of(fileno(file)), 80u);
  std::fclose(file);
}

}  // namespace
}  // namespace thinwire
