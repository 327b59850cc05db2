// Compression as a run is told of it, and as it tells of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "collectives/base/error.h"
#include "runtime/report/pay_off.h"
#include "runtime/trainer/compression.h"

namespace thinwire {
namespace {

TEST(CompressionOf, EveryWordReachesItsField) {
  TrainOptions words;
  words.compressor = "sign:block=64";
  words.feedback = "none";
  words.exchange = "two_stage";
  words.start_iter = 7;
  words.min_dimensions = 1;
  words.dense_below = 8;
  words.dense_names = "a*,b.[cd]";
  const CompressionOptions options = compression_of(words);
  EXPECT_EQ(std::get<Sign>(options.codec).block, 64);
  EXPECT_EQ(options.feedback.kind, FeedbackKind::none);
  EXPECT_EQ(options.exchange, ExchangeKind::two_stage);
  EXPECT_EQ(options.start_iter, 7);
  EXPECT_EQ(options.policy.min_dimensions, 1);
  EXPECT_EQ(options.policy.dense_below, 8);
  EXPECT_THAT(options.policy.dense_names, ::testing::ElementsAre("a*", "b.[cd]"));
  EXPECT_TRUE(compression_of({}).policy.dense_names.empty());
}

TEST(CompressionOf, WhatMakesNoSenseIsRefused) {
  const auto with = [](auto change) {
    TrainOptions words;
    words.compressor = "sign";
    change(words);
    return words;
  };
  EXPECT_THROW(compression_of(with([](auto& o) { o.exchange = "two-stage"; })), UsageError);
  EXPECT_THROW(compression_of(with([](auto& o) { o.exchange = "all_reduce"; })), UsageError);
  EXPECT_THROW(compression_of(with([](auto& o) { o.dense_names = "a,,b"; })), UsageError);
  EXPECT_THROW(compression_of(with([](auto& o) { o.dense_names = "a,"; })), UsageError);
  EXPECT_NO_THROW(compression_of(with([](auto& o) { o.exchange = "auto"; })));
}

TEST(TransmissionOf, TheFirstStepsAreDense) {
  CompressionOptions options;
  options.start_iter = 3;
  EXPECT_EQ(transmission_of(options, 2, Transmission::compressed), Transmission::dense);
  EXPECT_EQ(transmission_of(options, 3, Transmission::compressed), Transmission::compressed);
  EXPECT_EQ(transmission_of(options, 3, Transmission::dense), Transmission::dense);
}

TEST(NotesOnCompression, MomentumAndEta) {
  TrainOptions words;
  words.momentum = 0.9;
  EXPECT_TRUE(notes_on_compression(words).empty());
  words.compressor = "sign";
  EXPECT_THAT(notes_on_compression(words),
              ::testing::ElementsAre(::testing::HasSubstr("momentum 0.9")));
  words.optimizer = "adamw";
  EXPECT_THAT(notes_on_compression(words),
              ::testing::ElementsAre(::testing::HasSubstr("second moments")));
  words.compressor = "quantize:bits=4";
  EXPECT_TRUE(notes_on_compression(words).empty());
  words.compressor = "quantize:bits=2";
  EXPECT_FALSE(notes_on_compression(words).empty());

  words.optimizer = "sgd";
  words.momentum = 0;
  words.compressor = "topk:density=0.01";
  words.feedback = "econtrol:eta=0.01,momentum=0.9";
  EXPECT_TRUE(notes_on_compression(words).empty());
  words.feedback = "ef21";
  EXPECT_THAT(notes_on_compression(words),
              ::testing::ElementsAre(::testing::HasSubstr("econtrol:eta=0.01,momentum=0.9")));
  words.feedback = "econtrol:eta=0.5,momentum=0.9";
  EXPECT_THAT(
      notes_on_compression(words),
      ::testing::ElementsAre(::testing::HasSubstr("warning: feedback econtrol: eta is 0.5")));
}

TEST(PayOff, BreakEvenIsBitsSavedPerSecondAdded) {
  EXPECT_EQ(break_even_bandwidth(1e6, 0.001), 8e9);
  EXPECT_EQ(break_even_bandwidth(0, 0.001), std::nullopt);
  EXPECT_EQ(break_even_bandwidth(-5, 0.001), std::nullopt);
  EXPECT_TRUE(std::isinf(break_even_bandwidth(1e6, 0).value()));
}

TEST(PayOff, NumbersForPeople) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1000), "1,000");
  EXPECT_EQ(format_count(1270216), "1,270,216");
  EXPECT_EQ(format_bandwidth(12.34e9), "12.3 Gbit/s");
  EXPECT_EQ(format_bandwidth(100e6), "100 Mbit/s");
  EXPECT_EQ(format_bandwidth(1500), "1.5 kbit/s");
}

TEST(PayOff, ARunsLastWords) {
  StepReport whole;
  whole.steps = 100;
  whole.compressed_steps = 100;
  whole.bytes_dense = 1270216;
  whole.bytes_wire = 42228;
  whole.step_seconds = 0.0143;
  whole.arithmetic_seconds = 0.001;
  whole.waited_seconds = 0.0021;
  EXPECT_THAT(
      pay_off(whole),
      ::testing::ElementsAre(
          "compression: 42,228 bytes a step instead of 1,270,216 (30.1 times fewer) for 1.00 ms of "
          "arithmetic: pays where a rank sends less than 9.82 Gbit/s",
          "of a step's 14.30 ms 2.10 ms were spent waiting for the other ranks and the network"));
  // Half of the steps were dense: what one compressed step saved is the same.
  StepReport late = whole;
  late.compressed_steps = 50;
  late.bytes_wire = (1270216 + 42228) / 2.0;
  late.arithmetic_seconds = 0.0005;
  EXPECT_THAT(pay_off(late).front(), ::testing::HasSubstr("42,228 bytes"));
  EXPECT_THAT(pay_off(late).front(), ::testing::HasSubstr("9.82 Gbit/s"));
  StepReport longer = whole;
  longer.bytes_wire = 2540432;
  EXPECT_THAT(pay_off(longer).front(), ::testing::HasSubstr("it never pays"));
  StepReport dense = whole;
  dense.compressed_steps = 0;
  EXPECT_THAT(pay_off(dense), ::testing::ElementsAre(::testing::HasSubstr("`thinwire advise`")));
  StepReport alone;
  EXPECT_TRUE(pay_off(alone).empty());
}

}  // namespace
}  // namespace thinwire
