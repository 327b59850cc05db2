#include "runtime/data/idx.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "collectives/base/error.h"
#include "tests/runtime/data/idx_files.h"

namespace thinwire {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// Two samples of 2 x 3 pixels for training, one for testing.
class IdxTest : public testing::Test {
 protected:
  std::string message() const {
    try {
      load_fashion_mnist(folder_.path());
    } catch (const DataError& error) {
      return error.what();
    }
    return "";
  }

  TemporaryFolder folder_;
};

TEST_F(IdxTest, ReadsPlainFiles) {
  folder_.write("a", idx(3, {2, 1, 3}, {1, 2, 3, 4, 5, 255}));
  const IdxArray array = read_idx(folder_.path() / "a", 3);
  EXPECT_THAT(array.shape, testing::ElementsAre(2, 1, 3));
  EXPECT_THAT(array.values, testing::ElementsAre(1, 2, 3, 4, 5, 255));
}

TEST_F(IdxTest, ReadsGzipWhateverTheFileIsCalled) {
  // Larger than any buffer, and not compressible to nothing.
  std::vector<std::uint8_t> values(300 * 1000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint8_t>(i * i >> 3);
  folder_.write("a", gzip(idx(2, {300, 1000}, values)));
  EXPECT_EQ(read_idx(folder_.path() / "a", 2).values, values);
}

TEST_F(IdxTest, AFileLargerThanMemoryIsNotRead) {
  folder_.write("a", "");
  std::error_code error;
  fs::resize_file(folder_.path() / "a", std::uintmax_t{1} << 43, error);
  if (error) GTEST_SKIP() << "no files of 8 TiB here";
  try {
    read_idx(folder_.path() / "a", 2);
    ADD_FAILURE() << "it was read";
  } catch (const DataError& refusal) {
    EXPECT_THAT(refusal.what(), HasSubstr("has more bytes than this host has memory; "));
  }
}

TEST_F(IdxTest, LoadsAFolder) {
  write_small_set(folder_);
  const DataSplit split = load_fashion_mnist(folder_.path());
  EXPECT_EQ(split.train->size(), 2);
  EXPECT_EQ(split.test->size(), 1);
  EXPECT_EQ(split.train->classes(), 10);
  EXPECT_THAT(split.train->sample_shape(), testing::ElementsAre(1, 2, 3));
  const std::vector<std::int64_t> second{1};
  const Batch batch = split.train->batch(second, at::kDouble);
  EXPECT_EQ(batch.input.data_ptr<double>()[5], (12 / 255.0 - .2860) / .3530);
  EXPECT_EQ(batch.target.data_ptr<std::int64_t>()[0], 9);
}

TEST_F(IdxTest, PrefersPlainFilesOverCompressedOnes) {
  write_small_set(folder_);
  folder_.write("train-labels-idx1-ubyte.gz", "not gzip");
  EXPECT_NO_THROW(load_fashion_mnist(folder_.path()));
}

struct Damage {
  std::string name;
  std::function<void(const TemporaryFolder&)> apply;
  std::string file;     // that the message names
  std::string message;  // and a part of what it says
};

class DamagedIdxTest : public IdxTest, public testing::WithParamInterface<Damage> {};

TEST_P(DamagedIdxTest, IsRefusedWithTheFileAndWhatToDo) {
  write_small_set(folder_);
  GetParam().apply(folder_);
  EXPECT_THAT(message(), testing::AllOf(HasSubstr(GetParam().file), HasSubstr(GetParam().message),
                                        HasSubstr("; "), HasSubstr("dataset-fashion-mnist")));
}

const std::string kImages = "train-images-idx3-ubyte";
const std::string kLabels = "train-labels-idx1-ubyte";
const std::string kTestImages = "t10k-images-idx3-ubyte";

std::function<void(const TemporaryFolder&)> write(const std::string& name,
                                                  const std::string& contents) {
  return [=](const TemporaryFolder& folder) { folder.write(name, contents); };
}

std::function<void(const TemporaryFolder&)> write_gzip(const std::string& contents) {
  return [=](const TemporaryFolder& folder) {
    fs::remove(folder.path() / kImages);
    folder.write(kImages + ".gz", contents);
  };
}

std::string good_images() {
  return idx(3, {2, 2, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
}

std::string flip_byte(std::string text, std::size_t place) {
  text[place] = static_cast<char>(text[place] ^ 0x55);
  return text;
}

std::string cut(const std::string& text, std::size_t bytes) {
  return text.substr(0, text.size() - bytes);
}

INSTANTIATE_TEST_SUITE_P(
    Files, DamagedIdxTest,
    testing::Values(
        Damage{"missing_folder", [](const auto& folder) { fs::remove_all(folder.path()); }, kImages,
               "expected a file"},
        Damage{"missing_file", [](const auto& folder) { fs::remove(folder.path() / kTestImages); },
               kTestImages, "expected a file"},
        Damage{"folder_in_place_of_file",
               [](const auto& folder) {
                 fs::remove(folder.path() / kLabels);
                 fs::create_directory(folder.path() / kLabels);
               },
               kLabels, "no file"},
        Damage{"empty", write(kImages, ""), kImages, "within its header (0 of 16 bytes)"},
        Damage{"short_header", write(kImages, good_images().substr(0, 15)), kImages,
               "within its header (15 of 16 bytes)"},
        Damage{"wrong_magic", write(kImages, flip_byte(good_images(), 0)), kImages,
               "begins with 55000803, not 00000803"},
        Damage{"labels_for_images", write(kImages, idx(1, {16}, std::vector<std::uint8_t>(16))),
               kImages, "begins with 00000801, not 00000803"},
        Damage{"floats", write(kImages, flip_byte(good_images(), 2)), kImages,
               "begins with 00005d03, not 00000803"},
        Damage{"zero_dimension", write(kImages, idx(3, {0, 2, 3}, {})), kImages,
               "a dimension of zero"},
        Damage{"overflow", write(kImages, idx(3, {0x80000000, 0x80000000, 4}, {})), kImages,
               "product overflows"},
        Damage{"truncated", write(kImages, cut(good_images(), 1)), kImages,
               "is truncated: 11 of 12 bytes"},
        Damage{"too_long", write(kImages, good_images() + "xyz"), kImages, "3 bytes too many"},
        Damage{"gzip_truncated_in_data", write_gzip(cut(gzip(good_images()), 10)), kImages + ".gz",
               "in the middle of its gzip data"},
        Damage{"gzip_truncated_in_checksum", write_gzip(cut(gzip(good_images()), 1)),
               kImages + ".gz", "in the middle of its gzip data"},
        Damage{"gzip_of_two_bytes", write_gzip("\x1f\x8b"), kImages + ".gz",
               "in the middle of its gzip data"},
        Damage{"gzip_wrong_checksum",
               write_gzip(flip_byte(gzip(good_images()), gzip(good_images()).size() - 8)),
               kImages + ".gz", "damaged gzip data (incorrect data check)"},
        Damage{"gzip_wrong_length",
               write_gzip(flip_byte(gzip(good_images()), gzip(good_images()).size() - 1)),
               kImages + ".gz", "damaged gzip data (incorrect length check)"},
        Damage{"gzip_then_garbage", write_gzip(gzip(good_images()) + "abc"), kImages + ".gz",
               "3 bytes after its gzip data"},
        Damage{"gzip_of_truncated", write_gzip(gzip(cut(good_images(), 2))), kImages + ".gz",
               "is truncated: 10 of 12 bytes"},
        Damage{"label_out_of_range", write(kLabels, idx(1, {2}, {3, 10})), kLabels,
               "gives sample 1 the label 10, which is not below 10"},
        Damage{"fewer_labels", write(kLabels, idx(1, {1}, {3})), kLabels, "1 labels for the 2"},
        Damage{"other_test_size", write(kTestImages, idx(3, {1, 3, 2}, {1, 2, 3, 4, 5, 6})), "",
               "test images of another size"}),
    [](const auto& parameter) { return parameter.param.name; });

TEST(FashionMnistTest, TheInstalledSetIsComplete) {
  const std::string folder = "/usr/share/datasets/fashion-mnist";
  if (!fs::exists(folder)) GTEST_SKIP() << "dataset-fashion-mnist is not installed";
  const DataSplit split = load_fashion_mnist(folder);
  EXPECT_EQ(split.train->size(), 60000);
  EXPECT_EQ(split.test->size(), 10000);
  EXPECT_THAT(split.train->sample_shape(), testing::ElementsAre(1, 28, 28));

  // The constants of the normalisation are the set's own, and its classes are of equal size.
  std::vector<std::int64_t> all(60000);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int64_t>(i);
  const Batch batch = split.train->batch(all, at::kFloat);
  EXPECT_NEAR(batch.input.mean(at::kDouble).item<double>(), 0, 1e-3);
  EXPECT_NEAR(batch.input.to(at::kDouble).std().item<double>(), 1, 1e-3);
  std::vector<int> counts(10);
  for (std::int64_t i = 0; i < 60000; ++i) {
    ++counts[static_cast<std::size_t>(batch.target.data_ptr<std::int64_t>()[i])];
  }
  EXPECT_THAT(counts, testing::Each(6000));
  EXPECT_THAT(std::vector<std::int64_t>(batch.target.data_ptr<std::int64_t>(),
                                        batch.target.data_ptr<std::int64_t>() + 5),
              testing::ElementsAre(9, 0, 0, 3, 0));
}

}  // namespace
}  // namespace thinwire
