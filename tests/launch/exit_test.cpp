#include "launch/exit.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <new>
#include <stdexcept>

#include "collectives/base/error.h"
#include "launch/info.h"

namespace thinwire {
namespace {

using testing::ContainsRegex;
using testing::HasSubstr;

std::string reported(const std::exception& error, std::optional<int> rank, int expected_code) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(report(error, rank), expected_code);
  return testing::internal::GetCapturedStderr();
}

TEST(Exit, AnErrorHasItsOwnCode) {
  EXPECT_EQ(reported(UsageError("a; b"), std::nullopt, 2), "thinwire: a; b\n");
  EXPECT_EQ(reported(DataError("a; b"), 0, 65), "thinwire: rank 0: a; b\n");
  EXPECT_EQ(reported(PeerLost("a; b"), 3, 71), "thinwire: rank 3: a; b\n");
  EXPECT_EQ(reported(IoError("a; b"), std::nullopt, 74), "thinwire: a; b\n");
  EXPECT_EQ(reported(RanksDisagree("a; b"), std::nullopt, 76), "thinwire: a; b\n");
  EXPECT_EQ(reported(ConfigurationMismatch("a; b"), std::nullopt, 78), "thinwire: a; b\n");
}

TEST(Exit, EverythingElseIsInternal) {
  EXPECT_EQ(reported(Bug("bug: x"), std::nullopt, 70), "thinwire: bug: x\n");
  EXPECT_EQ(reported(std::runtime_error("x"), 1, 70), "thinwire: rank 1: x\n");
  EXPECT_THAT(reported(std::bad_alloc(), std::nullopt, 70), HasSubstr("out of memory; "));
}

TEST(Exit, LibtorchSaysWhatWithoutItsStack) {
  const c10::Error error({"matmul", "matmul.cpp", 7}, "shapes differ");
  ASSERT_THAT(error.what(), HasSubstr("raised from matmul"));
  EXPECT_EQ(reported(error, std::nullopt, 70), "thinwire: libtorch: shapes differ\n");
}

TEST(Exit, ALibtorchErrorInWordsOfOursLosesItsStackToo) {
  const c10::Error error({"recv", "Utils.hpp", 7}, "connection reset");
  const PeerLost ours(std::string("no store (") + error.what() + "); see rank 0");
  EXPECT_EQ(reported(ours, std::nullopt, 71),
            "thinwire: no store (connection reset); see rank 0\n");
}

TEST(Exit, WhatAPeerSaysDoesNotReachTheTerminalRaw) {
  EXPECT_EQ(reported(PeerLost("rank 1: \x1b[2J\x07; see it"), 0, 71),
            "thinwire: rank 0: rank 1: \\x1b[2J\\x07; see it\n");
  EXPECT_EQ(reported(UsageError("they differ:\nlr: 1, 2"), std::nullopt, 2),
            "thinwire: they differ:\nlr: 1, 2\n");
}

TEST(Exit, TheTableHasEveryCodeOfTheEnum) {
  const std::string table = exit_code_table();
  for (const int code : {0, 2, 65, 70, 71, 73, 74, 75, 76, 78, 130, 143}) {
    EXPECT_THAT(table, ContainsRegex("(^|\n) +" + std::to_string(code) + "  [a-z]"));
  }
}

TEST(Info, ALineForEachPart) {
  const std::string info = info_text();
  EXPECT_THAT(info, ContainsRegex("thinwire +[0-9]+\\.[0-9]+\\.[0-9]+\n"));
  EXPECT_THAT(info, ContainsRegex("compiler +[A-Za-z]+ [0-9.]+, "));
  EXPECT_THAT(info, ContainsRegex("libtorch +2\\.[0-9]+"));
  EXPECT_THAT(info, ContainsRegex("MPI +[Oo]"));
  EXPECT_THAT(info, ContainsRegex("CUDA +.+\n"));
  EXPECT_THAT(info, ContainsRegex("NCCL +.+\n"));
}

}  // namespace
}  // namespace thinwire
