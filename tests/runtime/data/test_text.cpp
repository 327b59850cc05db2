#include "runtime/data/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "collectives/base/error.h"
#include "runtime/data/load.h"
#include "tests/runtime/data/idx_files.h"

namespace thinwire {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::int64_t> values(const at::Tensor& tensor) {
  const auto* data = tensor.const_data_ptr<std::int64_t>();
  return {data, data + tensor.numel()};
}

// 'a', 'b', ... in turn, `letters` of them.
std::string alphabet(std::size_t length, std::size_t letters = 26) {
  std::string text;
  for (std::size_t i = 0; i < length; ++i) text += static_cast<char>('a' + i % letters);
  return text;
}

std::string message(const std::string& spec) {
  try {
    load_data(spec);
  } catch (const Error& error) {
    return error.what();
  }
  return "no Error";
}

class TextTest : public testing::Test {
 protected:
  std::string write(const std::string& text, const std::string& name = "text.txt") {
    folder_.write(name, text);
    return (folder_.path() / name).string();
  }
  TemporaryFolder folder_;
};

TEST_F(TextTest, NumbersTheBytesThatOccurInAscendingOrder) {
  const std::string text = "hello\xff";
  const Characters characters =
      encode_text({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}, "text");
  EXPECT_THAT(characters.vocabulary, ElementsAre('e', 'h', 'l', 'o', 0xff));
  EXPECT_THAT(characters.tokens, ElementsAre(1, 0, 2, 2, 3, 4));
}

// 100 characters: 90 to learn from, 10 to test. Windows of 4: (90 - 1) / 4 = 22 and 2.
TEST_F(TextTest, CutsAFileIntoWindowsAndTheirNextCharacters) {
  const DataSplit split = load_data("text:" + write(alphabet(100)) + ",context=4");
  EXPECT_EQ(split.train->size(), 22);
  EXPECT_EQ(split.test->size(), 2);
  EXPECT_EQ(split.train->classes(), 26);
  EXPECT_EQ(split.train->targets_per_sample(), 4);
  EXPECT_THAT(split.train->sample_shape(), ElementsAre(4));
  const std::vector<std::int64_t> indices{21, 0};
  const Batch batch = split.train->batch(indices, at::kFloat);
  EXPECT_THAT(batch.input.sizes(), ElementsAre(2, 4));
  EXPECT_THAT(values(batch.input), ElementsAre(84 % 26, 85 % 26, 86 % 26, 87 % 26, 0, 1, 2, 3));
  EXPECT_THAT(values(batch.target), ElementsAre(85 % 26, 86 % 26, 87 % 26, 88 % 26, 1, 2, 3, 4));
  const std::vector<std::int64_t> first{0};
  EXPECT_THAT(values(split.test->batch(first, at::kDouble).input),
              ElementsAre(90 % 26, 91 % 26, 92 % 26, 93 % 26));
  EXPECT_THROW(split.test->batch(std::vector<std::int64_t>{2}, at::kFloat), Bug);
}

// A window that ends with the range has a next character only where one more is left.
TEST_F(TextTest, UsesAWindowOnlyWhereItsLastTargetIsInTheRange) {
  const auto text = std::make_shared<const Characters>(
      Characters{.vocabulary = {'a', 'b'}, .tokens = {0, 1, 0, 1, 0, 1, 0, 1, 0}});
  EXPECT_EQ(TextDataset(text, 0, 8, 4).size(), 1);
  EXPECT_EQ(TextDataset(text, 0, 9, 4).size(), 2);
  EXPECT_THROW(TextDataset(text, 0, 4, 4), Bug);
  EXPECT_THROW(TextDataset(text, 0, 10, 4), Bug);
}

TEST_F(TextTest, ReadsGzip) {
  const DataSplit plain = load_data("text:" + write(alphabet(500)) + ",context=8");
  const DataSplit packed = load_data("text:" + write(gzip(alphabet(500)), "t.gz") + ",context=8");
  EXPECT_EQ(packed.train->fingerprint(), plain.train->fingerprint());
  EXPECT_THAT(message("text:" + write(gzip(alphabet(500)).substr(0, 20), "cut.gz")),
              HasSubstr("ends in the middle of its gzip data"));
}

TEST_F(TextTest, FingerprintsTextVocabularyAndContext) {
  const auto print = [&](const std::string& text, const std::string& context) {
    return load_data("text:" + write(text) + ",context=" + context).train->fingerprint();
  };
  const std::string text = alphabet(400);
  EXPECT_EQ(print(text, "8"), print(text, "8"));
  EXPECT_NE(print(text, "8"), print(text, "9"));
  std::string other = text;
  other[3] = 'z';
  EXPECT_NE(print(other, "8"), print(text, "8"));
  // The same numbers, for other characters.
  std::string shifted = text;
  for (char& c : shifted) c = static_cast<char>(c + 1);
  EXPECT_NE(print(shifted, "8"), print(text, "8"));
}

TEST_F(TextTest, TakesPathsWithCommasAndOptionsInAnyForm) {
  std::filesystem::create_directory(folder_.path() / "a,b:c");
  const std::string odd = write(alphabet(2000), "a,b:c/d=e,F=g.txt");
  EXPECT_EQ(load_data("text:" + odd).train->targets_per_sample(), 128);
  EXPECT_EQ(load_data("text:" + odd + ",context=64").train->targets_per_sample(), 64);
  EXPECT_THAT(message("text:" + odd + ",contxt=64"), HasSubstr("did you mean 'context'"));
  EXPECT_THAT(message("text:" + odd + ",context=1"), HasSubstr("from 2 to"));
  EXPECT_THAT(message("text:contxt=64"), HasSubstr("did you mean 'context'"));
  EXPECT_THAT(message("text:c=64"), testing::Not(HasSubstr("there is no file")));
  EXPECT_THAT(message("txt"), HasSubstr("did you mean 'text'"));
}

TEST_F(TextTest, RefusesWhatIsNoText) {
  EXPECT_THAT(message("text:/nowhere/text"),
              testing::AllOf(HasSubstr("there is no file '/nowhere/text'"),
                             HasSubstr("package jargon-text")));
  EXPECT_THAT(message("text:" + folder_.path().string()), HasSubstr("there is no file"));
  EXPECT_THAT(message("text:" + write("")), HasSubstr("has 0 characters"));
  std::string binary = alphabet(2000);
  binary[700] = '\0';
  EXPECT_THAT(message("text:" + write(binary)), HasSubstr("is no text: byte 700 of it is zero"));
  EXPECT_THAT(message("text:" + write(std::string(2000, 'a'))),
              HasSubstr("has 1 different characters"));
}

// The last tenth holds one character more than the context, or just as many.
TEST_F(TextTest, RefusesATextTooShortForOneSampleToTest) {
  EXPECT_EQ(load_data("text:" + write(alphabet(170)) + ",context=16").test->size(), 1);
  EXPECT_THAT(message("text:" + write(alphabet(169)) + ",context=16"),
              testing::AllOf(HasSubstr("has 169 characters"), HasSubstr("context of 16"),
                             HasSubstr("shorter context")));
}

TEST_F(TextTest, ReadsTheDefaultTextWhereItIsInstalled) {
  if (!std::filesystem::exists(default_text())) {
    EXPECT_THAT(message("text"), HasSubstr("package jargon-text"));
    GTEST_SKIP() << "no package jargon-text";
  }
  const DataSplit split = load_data("text:context=64");
  EXPECT_GT(split.train->size() * 64, 1'400'000);
  EXPECT_EQ(split.train->classes(), 146);
  EXPECT_EQ(load_data("text,context=64").train->fingerprint(), split.train->fingerprint());
}

}  // namespace
}  // namespace thinwire
