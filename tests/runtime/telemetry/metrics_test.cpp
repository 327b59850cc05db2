#include "runtime/telemetry/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace thinwire {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

class MetricsTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "/metrics-" +
              testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    path_ = folder_ + "/metrics.jsonl";
  }
  void TearDown() override { fs::remove_all(folder_); }

  static StepReport report(std::int64_t step, std::int64_t steps = 1) {
    StepReport report;
    report.step = step;
    report.steps = steps;
    report.loss = 1.5;
    return report;
  }
  static EndReport end(std::int64_t step, std::int64_t steps) {
    EndReport end;
    end.last = report(step, steps);
    return end;
  }
  // Steps 1 to `last`, and the end.
  void whole_run(std::int64_t last) const {
    MetricsFile file(path_, 0);
    for (std::int64_t step = 1; step <= last; ++step) file.write(report(step));
    file.write(end(last, last));
  }
  std::string content() const {
    std::ifstream file(path_);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // Of each line; that of an end is negative.
  std::vector<std::int64_t> steps() const {
    std::vector<std::int64_t> steps;
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) {
      const auto json = nlohmann::json::parse(line);
      const std::int64_t step = json.at("step");
      steps.push_back(json.contains("event") ? -step : step);
    }
    return steps;
  }

  std::string folder_;
  std::string path_;
};

TEST_F(MetricsTest, ARunThatHasNothingLeftToTrainKeepsTheEnd) {
  whole_run(3);
  const std::string before = content();
  {
    MetricsFile file(path_, 3);
    file.write(end(3, 0));
  }
  EXPECT_EQ(content(), before);
}

TEST_F(MetricsTest, ARunThatGoesOnDropsTheEnd) {
  whole_run(3);
  MetricsFile file(path_, 3);
  file.write(report(4));
  file.write(end(4, 1));
  EXPECT_THAT(steps(), ElementsAre(1, 2, 3, 4, -4));
}

TEST_F(MetricsTest, WithoutTheEndOfThatStepOneIsWritten) {
  for (const std::int64_t resumed_at : {2, 4}) {
    whole_run(3);
    MetricsFile file(path_, resumed_at);
    file.write(end(resumed_at, 0));
    EXPECT_EQ(steps().back(), -resumed_at);
    EXPECT_EQ(steps().size(), resumed_at == 2 ? 3U : 4U);
  }
}

TEST_F(MetricsTest, NothingIsAppendedToAFileThatCouldNotBeReplaced) {
  whole_run(3);
  const std::string before = content();
  fs::create_directories(path_ + ".partial/in the way");
  MetricsFile file(path_, 1);
  EXPECT_THAT(file.take_warning(), HasSubstr("cannot write metrics to"));
  file.write(report(2));
  EXPECT_EQ(content(), before);
  EXPECT_EQ(file.take_warning(), "");
  fs::remove_all(path_ + ".partial");
  file.write(report(3));
  file.write(end(3, 2));
  EXPECT_THAT(steps(), ElementsAre(1, 3, -3));
  EXPECT_EQ(file.take_warning(), "");
}

}  // namespace
}  // namespace thinwire
