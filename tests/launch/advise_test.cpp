// The arithmetic of `thinwire advise`: curves, timelines, the choice, its flags.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "collectives/base/error.h"
#include "launch/advise/advice.h"
#include "launch/advise/link.h"
#include "launch/advise/options.h"
#include "launch/advise/timeline.h"
#include "launch/command_line.h"

namespace thinwire {
namespace {

using Kind = TimelineEvent::Kind;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Median, IsTheMiddleOrTheMeanOfTheTwo) {
  EXPECT_EQ(median({3}), 3);
  EXPECT_EQ(median({5, 1, 3}), 3);
  EXPECT_EQ(median({4, 1, 2, 30}), 3);
}

TEST(LinkCurve, StraightLinesAndTheLastOneBeyond) {
  const LinkCurve curve({{100, 1}, {200, 2}, {400, 3}});
  EXPECT_EQ(curve.seconds(0), 1);
  EXPECT_EQ(curve.seconds(100), 1);
  EXPECT_EQ(curve.seconds(150), 1.5);
  EXPECT_EQ(curve.seconds(200), 2);
  EXPECT_EQ(curve.seconds(300), 2.5);
  EXPECT_EQ(curve.seconds(400), 3);
  EXPECT_EQ(curve.seconds(800), 5);
  EXPECT_EQ(curve.latency(), 1);
  EXPECT_EQ(curve.bandwidth(), 8 * 400 / 3.0);
  EXPECT_EQ(LinkCurve({{100, 1}}).seconds(1000), 1);
  // The message of 20 bytes rode on a burst.
  EXPECT_EQ(LinkCurve({{0, 0}, {20, 2}, {100, 100}, {200, 200}}).seconds(20), 20);
  // One that was held up does not slow them all.
  EXPECT_EQ(LinkCurve({{0, 0}, {100, 100}, {200, 900}}).seconds(50), 50);
  EXPECT_EQ(LinkCurve({{0, 0}, {20, 2}, {100, 100}, {200, 900}, {300, 300}}).seconds(20), 20);
  // Two sizes say nothing of it.
  EXPECT_EQ(LinkCurve({{100, 100}, {200, 900}}).seconds(100), 100);
}

// A link of one byte a second.
Link slow_link() {
  const LinkCurve curve({{0, 0}, {1, 1}});
  return Link({{"all_to_all", curve}, {"all_gather", LinkCurve({{0, 1}, {1, 2}})}});
}

TEST(Link, UnknownOperationsCostWhatAnAllToAllDoes) {
  EXPECT_EQ(slow_link().seconds("all_gather", 5), 6);
  EXPECT_EQ(slow_link().seconds("broadcast", 5), 5);
}

Timeline buckets(const std::vector<double>& ready, double arithmetic, double bytes) {
  Timeline timeline;
  for (std::size_t i = 0; i < ready.size(); ++i) {
    timeline.events.push_back({Kind::ready, ready[i], {}, 0, 0});
    timeline.events.push_back({Kind::compute, arithmetic, {}, 0, 0});
    timeline.events.push_back({Kind::post, 0, "all_to_all", bytes, 0});
    timeline.events.push_back({Kind::wait, 0, {}, 0, i});
  }
  timeline.backward_end = ready.back();
  timeline.tail = 0.5;
  return timeline;
}

// Equal buckets that are full at equal distances: the formula in closed form.
TEST(Timeline, IsTheFormulaOfEqualBuckets) {
  // The network is the limit: k T_comm behind the first bucket.
  EXPECT_EQ(predict_step(buckets({1, 2, 3, 4}, 0, 5), slow_link()), 1 + 4 * 5 + 0.5);
  // Backward is: T_compute, and the last bucket's T_comm.
  EXPECT_EQ(predict_step(buckets({10, 20, 30, 40}, 0, 5), slow_link()), 40 + 5 + 0.5);
  // Arithmetic is on the same thread.
  EXPECT_EQ(predict_step(buckets({1, 2, 3, 4}, 2, 5), slow_link()), 1 + 4 * 7 + 0.5);
  EXPECT_EQ(communication(buckets({1, 2, 3, 4}, 2, 5), slow_link()), 20);
  // Nothing to send.
  Timeline quiet;
  quiet.backward_end = 3;
  quiet.tail = 1;
  EXPECT_EQ(predict_step(quiet, slow_link()), 4);
}

// Two operations in flight: the second one travels behind the first, while the thread computes.
TEST(Timeline, OperationsInFlightShareTheLink) {
  Timeline timeline;
  timeline.events = {{Kind::post, 0, "all_to_all", 4, 0},  // 0 to 4
                     {Kind::compute, 3, {}, 0, 0},         // 0 to 3
                     {Kind::post, 0, "all_to_all", 2, 0},  // 4 to 6
                     {Kind::wait, 0, {}, 0, 0},            // until 4
                     {Kind::compute, 1, {}, 0, 0},         // until 5
                     {Kind::wait, 0, {}, 0, 1},            // until 6
                     {Kind::compute, 1, {}, 0, 0},         // until 7
                     {Kind::post, 0, "all_gather", 1, 0},  // 7 to 9
                     {Kind::wait, 0, {}, 0, 2}};
  timeline.backward_end = 8;
  EXPECT_EQ(predict_step(timeline, slow_link()), 9);
}

// A token bucket of 3 seconds: what was saved up shortens the operations until it is used up.
TEST(Timeline, ARestedLinkIsSooner) {
  const Link link(slow_link().curves(), 3);
  Timeline timeline;
  timeline.events = {{Kind::post, 0, "all_to_all", 2, 0},
                     {Kind::wait, 0, {}, 0, 0},
                     {Kind::post, 0, "all_to_all", 5, 0},
                     {Kind::wait, 0, {}, 0, 1}};
  // Rests 10 s in every step: 7 s of messages take 4.
  timeline.tail = 10;
  EXPECT_EQ(predict_step(timeline, link), 14);
  // Rests 1 s: one is saved.
  timeline.tail = 1;
  EXPECT_EQ(predict_step(timeline, link), 7);
  // Never rests.
  timeline.tail = 0;
  EXPECT_EQ(predict_step(timeline, link), 7);
  // An operation is not shorter than its latency.
  timeline.events = {{Kind::post, 0, "all_gather", 1, 0}, {Kind::wait, 0, {}, 0, 0}};
  timeline.tail = 10;
  EXPECT_EQ(predict_step(timeline, link), 11);
}

Choice choice(const std::string& compressor, double wire, double arithmetic, double step) {
  return {.compressor = compressor,
          .wire_bytes = wire,
          .arithmetic_seconds = arithmetic,
          .predicted_seconds = step};
}

TEST(Advice, OfEquallyFastOnesTheFirst) {
  const auto best = [](double none, double half, double sign) {
    return best_of(
        {choice("none", 8, 0, none), choice("bf16", 4, 1, half), choice("sign", 1, 2, sign)});
  };
  EXPECT_EQ(best(1, 2, 3), 0u);
  EXPECT_EQ(best(1, 0.98, 0.99), 0u);
  EXPECT_EQ(best(1, 0.5, 0.49), 1u);
  EXPECT_EQ(best(1, 0.5, 0.4), 2u);
  EXPECT_EQ(best(0, 0, 0), 0u);
}

TEST(Advice, TheTableSaysFromWhereOnItPays) {
  const std::vector<Choice> choices{choice("none", 3'000'000, 0.001, 0.5),
                                    choice("sign", 1'000'000, 0.003, 0.1),
                                    choice("topk:density=0.9", 4'000'000, 0.009, 0.6)};
  const std::string text = describe(choices, 0);
  EXPECT_THAT(text, HasSubstr("3,000,000"));
  EXPECT_THAT(text, HasSubstr("8 Gbit/s"));  // 8 * 2e6 / .002
  EXPECT_THAT(text, HasSubstr("never"));
  EXPECT_THAT(text, HasSubstr("best: --compressor sign: steps 5.00 times as fast"));
  EXPECT_THAT(describe({choices[0], choices[2]}, 0), HasSubstr("Compression does not pay here"));
}

TEST(AdviseOptions, KeysBelongToTheirCompressor) {
  EXPECT_THAT(split_compressors("none"), ElementsAre("none"));
  EXPECT_THAT(split_compressors("none,sign:block=64,scale=rms,bf16,topk:density=0.1"),
              ElementsAre("none", "sign:block=64,scale=rms", "bf16", "topk:density=0.1"));
  EXPECT_THROW(split_compressors(""), UsageError);
  EXPECT_THROW(split_compressors("none,,sign"), UsageError);
}

TEST(AdviseOptions, TheRestIsTheTrainings) {
  const CommandLine line =
      parse_command_line({"advise", "--lr", "0.5", "--compressors=none,sign", "--json", "a.json",
                          "--repeats", "3", "--model", "mlp"});
  EXPECT_EQ(line.command, Command::advise);
  EXPECT_EQ(line.advise.compressors, "none,sign");
  EXPECT_EQ(line.advise.json, "a.json");
  EXPECT_EQ(line.advise.repeats, 3);
  EXPECT_EQ(line.train.lr, 0.5);
  EXPECT_EQ(line.train.model, "mlp");
  EXPECT_EQ(parse_command_line({"advise", "--help"}).command, Command::advise_help);
  EXPECT_EQ(parse_command_line({"help", "advise"}).command, Command::advise_help);
  EXPECT_THROW(parse_command_line({"advise", "--json"}), UsageError);
  EXPECT_THROW(parse_command_line({"advise", "--json", "a", "--json=b"}), UsageError);
  EXPECT_THROW(parse_command_line({"advise", "--repeats", "0"}), UsageError);
  EXPECT_THROW(parse_command_line({"advise", "--nonsense", "0"}), UsageError);
}

}  // namespace
}  // namespace thinwire
