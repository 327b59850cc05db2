#include <gtest/gtest.h>

#include <cmath>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/base/philox.h"
#include "collectives/base/text.h"
#include "collectives/base/thread.h"
#include "tests/support/few_threads.h"

namespace thinwire {
namespace {

template <typename Body>
std::string usage_error(Body body) {
  try {
    body();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "accepted";
}

// The known answers of the Random123 distribution.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox(0, 0, 0), (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~0ull, ~0ull, ~0ull),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, DrawsAreInRangeAndStreamsDiffer) {
  const Philox a(1, PhiloxStream::data_order, 0);
  const Philox b(1, PhiloxStream::data_order, 1);
  const Philox c(1, PhiloxStream::rounding, 0);
  double sum = 0;
  for (std::uint64_t i = 0; i < 10000; ++i) {
    EXPECT_LT(a.below(i, 7), 7u);
    const double u = a.uniform(i);
    EXPECT_TRUE(u >= 0 && u < 1);
    sum += u;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 6 / std::sqrt(12.0 * 10000));
  EXPECT_NE(a.bits(5), b.bits(5));
  EXPECT_NE(a.bits(5), c.bits(5));
}

TEST(Hash, KnownAnswers) {
  EXPECT_EQ(hex64(hash64("")), "2d06800538d394c2");  // XXH3_64bits of nothing
  EXPECT_EQ(hash128_hex("", 0), "99aa06d3014798d86001c324468d497f");
  EXPECT_NE(hash64("a"), hash64("b"));
  EXPECT_NE(hash64("a", 1), hash64("a", 2));
}

TEST(ChoiceReader, ReadsNamesKeysAndLists) {
  ChoiceReader spec("--model", "mlp:hidden=64,32,dropout=0.5");
  EXPECT_EQ(spec.name(), "mlp");
  EXPECT_EQ(spec.integers("hidden", {1}, 1, 100), (std::vector<std::int64_t>{64, 32}));
  EXPECT_EQ(spec.number("dropout", 0, 0, 1), 0.5);
  EXPECT_EQ(spec.integer("missing", 7, 0, 10), 7);
  EXPECT_NO_THROW(spec.done());
}

TEST(ChoiceReader, RefusesWithTheNearestWord) {
  EXPECT_EQ(usage_error([] {
              ChoiceReader spec("--x", "sign:blok=3");
              spec.integer("block", 1, 0, 10);
              spec.done();
            }),
            "--x sign: unknown key 'blok'; did you mean 'block'? it takes block");
  EXPECT_EQ(usage_error([] {
              ChoiceReader("--x", "sgn").unknown_name({"none", "sign"});
            }),
            "--x 'sgn' is not known; did you mean 'sign'? choose from none, sign");
  EXPECT_EQ(usage_error([] {
              ChoiceReader spec("--x", "none:a=1");
              spec.done();
            }),
            "--x none: unknown key 'a'; none takes no options");
  for (const char* text : {"", ":a=1", "s:", "s:=1", "s:a=", "s:a", "s:a=1,a=2", "s:,a=1"}) {
    EXPECT_NE(usage_error([&] { ChoiceReader("--x", text); }), "accepted") << text;
  }
}

TEST(ChoiceReader, NumbersAreWholeAndInRange) {
  EXPECT_EQ(parse_integer("n", "12", 0, 20), 12);
  EXPECT_EQ(parse_number("x", "1e-3", 0, 1), 1e-3);
  for (const char* text : {"", "x", "1x", "1.5", "21", "-1", "99999999999999999999"}) {
    EXPECT_NE(usage_error([&] { parse_integer("n", text, 0, 20); }), "accepted") << text;
  }
  for (const char* text : {"nan", "inf", "2", "-0.1", "0,5", "0x1p-2"}) {
    EXPECT_NE(usage_error([&] { parse_number("x", text, 0, 1); }), "accepted") << text;
  }
}

TEST(ChoiceReader, NearestWord) {
  EXPECT_EQ(nearest("momentun", {"lr", "momentum"}), "momentum");
  EXPECT_EQ(nearest("zzzzzzzz", {"lr", "momentum"}), "");
}

TEST(Check, SaysWhatAndWhereAndBothValues) {
  try {
    check_equal(1, 2, "sizes agree");
    FAIL();
  } catch (const Bug& bug) {
    EXPECT_NE(std::string(bug.what()).find("sizes agree (1 vs 2), at "), std::string::npos);
    EXPECT_NE(std::string(bug.what()).find("base_test.cpp:"), std::string::npos);
  }
}

TEST(Text, WhatEverybodySeesStaysAsItIs) {
  const std::string plain = "runs/Größe 東京 \U0001F600 a\\b 'x'";
  EXPECT_EQ(printable(plain), plain);
  EXPECT_EQ(printable(""), "");
}

TEST(Text, ControlsAndWhatIsInvisibleAreShown) {
  EXPECT_EQ(printable("a\nb\tc\r"), "a\\nb\\tc\\r");
  EXPECT_EQ(printable(std::string("\x1b[2J\x07\x7f\0", 7)), "\\x1b[2J\\x07\\x7f\\x00");
  EXPECT_EQ(printable("\u009b1m"), "\\xc2\\x9b1m");             // a terminal's control sequence
  EXPECT_EQ(printable("\ufeffmodel"), "\\xef\\xbb\\xbfmodel");  // a byte-order mark
  EXPECT_EQ(printable("a\u202eb"), "a\\xe2\\x80\\xaeb");        // from right to left
}

TEST(Text, WhatIsNotUtf8IsShownByteByByte) {
  EXPECT_EQ(printable("\xff latin"), "\\xff latin");
  EXPECT_EQ(printable("\xc0\xaf"), "\\xc0\\xaf");           // longer than needed
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");  // half of a pair
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
  EXPECT_EQ(printable("x\xe2\x82"), "x\\xe2\\x82");  // cut off
}

TEST(Text, LongTextIsCutWithACount) {
  EXPECT_EQ(printable(std::string(5'000'000, 'v'), 3), "vvv... (4999997 bytes more)");
  EXPECT_EQ(printable("abc", 3), "abc");
  EXPECT_EQ(printable("ab\u00e9\u00e9", 3), "ab\u00e9... (2 bytes more)");
  EXPECT_LE(printable(std::string(1000, '\1'), 100).size(), 130u);
}

TEST(Text, PrintableTextIsNotChangedAgain) {
  std::string bytes;
  for (int i = 0; i < 256; ++i) bytes += static_cast<char>(i);
  const std::string once = printable(bytes, 10'000);
  EXPECT_EQ(printable(once, 10'000), once);
  EXPECT_EQ(printable_lines(once + "\n" + once), once + "\n" + once);
}

TEST(Text, AMessageKeepsItsLines) {
  EXPECT_EQ(printable_lines("they differ:\nlr: 1\x1b, 2\n"), "they differ:\nlr: 1\\x1b, 2\n");
}

TEST(Text, StackTracesAreLeftOut) {
  const std::string trace =
      "Exception raised from recvBytes at /pytorch/Utils.hpp:654 (most recent call first):\n"
      "frame #0: c10::Error::Error(c10::SourceLocation) + 0x94 (0x7f in libc10.so)\n"
      "frame #1: <unknown function> + 0x5d7 (0x7f in libtorch.so)\n\n";
  EXPECT_EQ(without_stack("connection reset\n" + trace), "connection reset");
  EXPECT_EQ(without_stack("no store (reset\n" + trace + "); see rank 0"),
            "no store (reset); see rank 0");
  EXPECT_EQ(without_stack("a\n" + trace + "b\n" + trace), "ab");
  EXPECT_EQ(without_stack("two\nlines; #1 stays"), "two\nlines; #1 stays");
}

TEST(Thread, ThatCannotBeMadeIsAnErrorWithAdvice) {
  if (!testing::kThreadsCanBeFew) GTEST_SKIP() << "a sanitizer needs the address space";
  const testing::FewThreads few(2);
  require_threads(2);
  require_threads(2);  // the first two are gone
  try {
    require_threads(3);
    ADD_FAILURE() << "three were made";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::internal);
    EXPECT_TRUE(std::string(error.what()).starts_with("cannot make a thread: ")) << error.what();
    EXPECT_NE(std::string(error.what()).find("; raise `ulimit -u`"), std::string::npos);
  }
}

TEST(ChoiceReader, HasAtMostAThousandNumbersInAList) {
  std::string list = "mlp:hidden=1";
  for (int i = 1; i < 1000; ++i) list += ",1";
  EXPECT_EQ(ChoiceReader("--model", list).integers("hidden", {}, 1, 9).size(), 1000u);
  EXPECT_EQ(usage_error([&] { ChoiceReader("--model", list + ",1").integers("hidden", {}, 1, 9); }),
            "--model mlp: 'hidden' has 1001 numbers; give at most 1000");
}

TEST(ChoiceReader, ShowsWhatItDoesNotKnowShortAndPlain) {
  const std::string long_one(100'000, 'x');
  EXPECT_LT(usage_error([&] { ChoiceReader("--data", "a:" + long_one + "=1").done(); }).size(),
            500u);
  EXPECT_LT(usage_error([&] { ChoiceReader("--data", "a:" + long_one); }).size(), 800u);
  EXPECT_LT(usage_error([&] { parse_number("--lr", long_one, 0, 1); }).size(), 500u);
  EXPECT_EQ(usage_error([&] { parse_integer("--steps", "\x1b[2J", 0, 1); }),
            "--steps is '\\x1b[2J'; give a whole number from 0 to 1");
}

}  // namespace
}  // namespace thinwire
