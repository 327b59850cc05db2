#include "runtime/data/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "collectives/base/error.h"
#include "tests/runtime/data/idx_files.h"

namespace thinwire {
namespace {

using testing::HasSubstr;

std::string usage_message(const std::string& spec) {
  try {
    load_data(spec);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no UsageError";
}

TEST(LoadTest, TakesAPathAfterTheColonWhateverItsCharacters) {
  const TemporaryFolder outer;
  const std::string odd = (outer.path() / "a=b,c:d").string();
  std::filesystem::create_directory(odd);
  const TemporaryFolder files;
  write_small_set(files);
  std::filesystem::copy(files.path(), odd);
  EXPECT_EQ(load_data("fashion-mnist:" + odd).train->size(), 2);
}

TEST(LoadTest, SaysWhichFileAMissingFolderLacks) {
  try {
    load_data("fashion-mnist:/nowhere");
    FAIL();
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("/nowhere/train-images-idx3-ubyte"),
                                             HasSubstr("package dataset-fashion-mnist")));
  }
}

TEST(LoadTest, ReadsTheOptionsOfSyntheticData) {
  const DataSplit split =
      load_data("synthetic:samples=30,test_samples=7,classes=3,channels=2,size=5,noise=.5,seed=9");
  EXPECT_EQ(split.train->size(), 30);
  EXPECT_EQ(split.test->size(), 7);
  EXPECT_EQ(split.train->classes(), 3);
  EXPECT_THAT(split.train->sample_shape(), testing::ElementsAre(2, 5, 5));
  for (const char* other : {"noise=.6,seed=9", "noise=.5,seed=8"}) {
    EXPECT_NE(load_data(std::string("synthetic:samples=30,test_samples=7,classes=3,channels=2,"
                                    "size=5,") +
                        other)
                  .train->fingerprint(),
              split.train->fingerprint());
  }
}

TEST(LoadTest, SyntheticDataHasTheDocumentedDefaults) {
  const DataSplit split = load_data("synthetic");
  EXPECT_EQ(split.train->size(), 4096);
  EXPECT_EQ(split.test->size(), 1024);
  EXPECT_EQ(
      split.train->fingerprint(),
      load_data("synthetic:classes=10,channels=1,size=28,noise=1.0,seed=1").train->fingerprint());
}

TEST(LoadTest, RefusesOtherWordsWithTheNearestOne) {
  EXPECT_THAT(usage_message("fashon-mnist"), HasSubstr("did you mean 'fashion-mnist'"));
  EXPECT_THAT(usage_message("sinthetic:samples=3"), HasSubstr("did you mean 'synthetic'"));
  EXPECT_THAT(usage_message("fashion-mnist2"), HasSubstr("choose from"));
  EXPECT_THAT(usage_message("fashion-mnist:"), HasSubstr("write fashion-mnist:PATH"));
  EXPECT_THAT(usage_message(""), HasSubstr("--data is empty"));
  EXPECT_THAT(usage_message("synthetic:sample=3"), HasSubstr("did you mean 'samples'"));
  EXPECT_THAT(usage_message("synthetic:classes=1"), HasSubstr("from 2 to 256"));
  EXPECT_THAT(usage_message("synthetic:samples=10000000,channels=1024,size=1024"),
              HasSubstr("would take 1.074e+07 GB of memory, this host has "));
}

}  // namespace
}  // namespace thinwire
