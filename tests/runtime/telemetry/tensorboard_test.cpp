#include "runtime/telemetry/tensorboard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

namespace thinwire {
namespace {

using testing::HasSubstr;

std::string hex(std::string_view bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    text += {kDigits[byte / 16], kDigits[byte % 16]};
  }
  return text;
}

class TensorBoardTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "/tensorboard-" +
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::vector<std::filesystem::path> files() const {
    return {std::filesystem::directory_iterator(folder_), {}};
  }
  std::string folder_;
};

// Bytes that TensorBoard 2.21's own RecordWriter writes for the same events.
TEST_F(TensorBoardTest, WritesTheBytesThatTensorBoardWrites) {
  const std::array<Scalar, 2> scalars{{{"loss", 1.5}, {"lr", -.1}}};
  EXPECT_EQ(
      hex(record(scalar_event(1234.5, 300, scalars))),
      "2600000000000000734fe3000900000000004a934010ac022a180a0b0a046c6f7373150000c03f0a090a026c72"
      "15cdccccbd95ec4b8a");
  EXPECT_EQ(hex(record(start_event(0.25, std::int64_t{1} << 40))),
            "14000000000000005e3d291509000000000000d03f108080808080203a020801fbeb142e");
  EXPECT_EQ(hex(record(version_event(1e9))),
            "1800000000000000a37f4b22090000000065cdcd411a0d627261696e2e4576656e743a32f4eb195e");
}

TEST_F(TensorBoardTest, AResumedRunWritesAFileOfItsOwnThatComesLater) {
  { const TensorBoardFile first(folder_ + "/new", 0); }
  folder_ += "/new";
  const auto before = files().at(0);
  TensorBoardFile second(folder_, 40);
  EXPECT_EQ(second.take_warning(), "");
  auto both = files();
  ASSERT_EQ(both.size(), 2u);
  std::sort(both.begin(), both.end());
  EXPECT_EQ(both[0], before);
  EXPECT_THAT(both[1].filename().string(), testing::StartsWith("events.out.tfevents."));
}

TEST_F(TensorBoardTest, AFolderThatCannotBeMadeCostsOneWarning) {
  TensorBoardFile file("/dev/null/tensorboard", 0);
  EXPECT_THAT(file.take_warning(),
              testing::AllOf(HasSubstr("/dev/null/tensorboard/events"),
                             HasSubstr("Not a directory"), HasSubstr("training goes on")));
  file.write(StepReport{});
  EXPECT_EQ(file.take_warning(), "");
}

TEST_F(TensorBoardTest, ADiskThatFillsUpCostsOneWarning) {
  TensorBoardFile file(folder_, 0);
  file.write(StepReport{});
  EXPECT_EQ(file.take_warning(), "");
  // A limit on files stands for a disk that is full from here on.
  const auto size = std::filesystem::file_size(files().at(0));
  rlimit previous{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &previous), 0);
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit full{size + 10, previous.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
  file.write(StepReport{});
  const std::string warning = file.take_warning();
  file.write(1, Evaluation{});
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &previous), 0);
  EXPECT_THAT(warning, HasSubstr("File too large"));
  EXPECT_EQ(file.take_warning(), "");
}

}  // namespace
}  // namespace thinwire
