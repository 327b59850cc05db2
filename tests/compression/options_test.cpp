// Words to options, and the advice for those that cannot be.
#include <gtest/gtest.h>

#include "collectives/base/error.h"
#include "collectives/compression/feedback/eta.h"
#include "collectives/compression/options.h"
#include "collectives/compression/parse.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "tests/compression/combinations.h"

namespace thinwire {
namespace {

// A queue of some device, as far as choosing a reducer goes.
class DeviceQueue final : public Queue {
 public:
  void attach_thread() override {}
  bool on_host() const override { return false; }
  Executor executor() const override { return {}; }
  std::shared_ptr<const Mark> mark() override { return nullptr; }
  void wait_for(const Mark&, const std::source_location&) override {}
  void synchronize(Deadline, const std::source_location&) override {}
  void copy(void*, const void*, std::size_t) override {}
  void fill(void*, int, std::size_t) override {}
  std::shared_ptr<void> host_memory(std::size_t) override { return nullptr; }
};

TEST(MakeReducer, MakesEveryCombinationOnADevice) {
  ReducerDevice device;
  device.queue = std::make_shared<DeviceQueue>();
  for (const CompressionOptions& options : valid_combinations()) {
    EXPECT_NE(make_reducer(options), nullptr);
    EXPECT_NE(make_reducer(options, device), nullptr);
  }
}

template <typename T>
T codec_of(const std::string& words) {
  return std::get<T>(parse_compression(words, "auto").codec);
}

TEST(ParseCompression, FillsTheFields) {
  const auto sign = codec_of<Sign>("sign:block=64,scale=rms");
  EXPECT_EQ(sign.block, 64);
  EXPECT_EQ(sign.scale, SignScale::rms);
  EXPECT_EQ(codec_of<Sign>("sign").scale, SignScale::l1);
  const auto quantize =
      codec_of<Quantize>("quantize:bits=3,block=96,grid=symmetric,rounding=stochastic");
  EXPECT_EQ(quantize.bits, 3);
  EXPECT_EQ(quantize.block, 96);
  EXPECT_EQ(quantize.grid, Grid::symmetric);
  EXPECT_EQ(quantize.rounding, Rounding::stochastic);
  EXPECT_EQ(codec_of<Quantize>("quantize").rounding, Rounding::nearest);
  EXPECT_EQ(codec_of<Cast>("fp16").half, Half::fp16);
  EXPECT_EQ(codec_of<Cast>("bf16").half, Half::bf16);
  const auto top_k = codec_of<TopK>("topk:density=0.05,block=1000,select=exact");
  EXPECT_EQ(top_k.density, 0.05);
  EXPECT_EQ(top_k.block, 1000);
  EXPECT_EQ(top_k.selection, Selection::exact);
  EXPECT_EQ(codec_of<PowerSgd>("powersgd:rank=2").matrix_approximation_rank, 2);
  const auto power_sgd = codec_of<PowerSgd>(
      "powersgd:matrix_approximation_rank=3,min_compression_rate=1.5,warm_start=0,"
      "orthogonalization_epsilon=1e-6");
  EXPECT_EQ(power_sgd.matrix_approximation_rank, 3);
  EXPECT_EQ(power_sgd.min_compression_rate, 1.5);
  EXPECT_FALSE(power_sgd.warm_start);
  EXPECT_EQ(power_sgd.orthogonalization_epsilon, 1e-6);
}

TEST(ParseCompression, ChoosesTheFeedbackAndExchangeThatACodecIsMadeFor) {
  const auto expect = [](const std::string& codec, const std::string& feedback,
                         const std::string& exchange, FeedbackKind kind, ExchangeKind way) {
    const CompressionOptions options = parse_compression(codec, feedback, exchange);
    EXPECT_EQ(options.feedback.kind, kind) << codec;
    EXPECT_EQ(options.exchange, way) << codec;
  };
  expect("none", "auto", "auto", FeedbackKind::none, ExchangeKind::all_reduce);
  expect("none", "auto", "two_stage", FeedbackKind::none, ExchangeKind::two_stage);
  for (const char* codec : {"sign", "quantize", "bf16"}) {
    expect(codec, "auto", "auto", FeedbackKind::error_feedback, ExchangeKind::two_stage);
  }
  expect("topk", "auto", "auto", FeedbackKind::error_feedback, ExchangeKind::all_gather);
  expect("topk", "econtrol", "auto", FeedbackKind::econtrol, ExchangeKind::all_gather);
  expect("topk", "econtrol", "two_stage", FeedbackKind::econtrol, ExchangeKind::two_stage);
  expect("sign", "none", "all_gather", FeedbackKind::none, ExchangeKind::all_gather);
  expect("powersgd", "auto", "auto", FeedbackKind::error_feedback, ExchangeKind::all_reduce);
  EXPECT_EQ(parse_compression("topk", "econtrol:eta=0.005").feedback.eta, 0.005);
  EXPECT_EQ(parse_compression("topk", "econtrol:eta=auto").feedback.eta, std::nullopt);
  EXPECT_EQ(parse_compression("topk", "ef21").feedback.eta, 0.0);
  EXPECT_EQ(parse_compression("topk", "ef21").feedback.kind, FeedbackKind::econtrol);
  EXPECT_EQ(parse_compression("topk", "econtrol").feedback.momentum, 0);
  EXPECT_EQ(parse_compression("topk", "econtrol:momentum=0.95").feedback.momentum, 0.95);
  EXPECT_EQ(parse_compression("topk", "ef21:momentum=0.9").feedback.momentum, 0.9);
}

// What ranks compare, and what a report says, is what a command line would have to say.
TEST(ParseCompression, ReadsWhatItWrites) {
  std::vector<CodecOptions> all = testing::variants();
  all.push_back(PowerSgd{3, 1.25, false, 1e-7});
  for (const CompressionOptions& options : valid_combinations()) all.push_back(options.codec);
  for (const CodecOptions& codec : all) {
    const std::string words = words_of(codec);
    const CodecOptions read = parse_compression(words, "none").codec;
    EXPECT_EQ(read.index(), codec.index()) << words;
    EXPECT_EQ(words_of(read), words);
    // And the help names it.
    const std::string help = " " + compressor_help() + " ";
    const std::string name = " " + words.substr(0, words.find(':'));
    EXPECT_TRUE(help.find(name + " ") != std::string::npos ||
                help.find(name + ":") != std::string::npos ||
                help.find(name + "[") != std::string::npos)
        << name << " in" << help;
  }
}

std::string message_of(const std::string& codec, const std::string& feedback = "auto",
                       const std::string& exchange = "auto") {
  try {
    parse_compression(codec, feedback, exchange);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(ParseCompression, SaysWhatIsWrongAndWhatToDo) {
  const auto says = [](const std::string& message, const std::string& part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  says(message_of("bf61"), "did you mean 'bf16'");
  says(message_of("quantize:bits=9"), "from 1 to 8");
  says(message_of("quantize:block=40"), "multiple of 32");
  says(message_of("quantize:bits=1,grid=symmetric"), "give 2 bits or more");
  says(message_of("quantize:rounding=up"), "choose from nearest, stochastic");
  says(message_of("topk:density=0"), "above 0, at most 1");
  says(message_of("topk:density=1.5"), "from 0 to 1");
  says(message_of("topk:block=16"), "from 32");
  says(message_of("topk:selct=exact"), "did you mean 'select'");
  says(message_of("sign:scale=l2"), "choose from l1, rms");
  says(message_of("fp16:block=32"), "takes no options");
  says(message_of("powersgd:rank=0"), "from 1");
  says(message_of("powersgd:orthogonalization_epsilon=0"), "give a number");
  says(message_of("powersgd:min_compression_rate=0"), "give a number");
  says(message_of("powersgd:warm_start=yes"), "choose from true, false");
  says(message_of("topk", "econtrol:eta=1.5"), "from 0 to 1");
  says(message_of("topk", "ef12"), "did you mean 'ef21'");
  says(message_of("topk", "auto", "allgather"), "did you mean 'all_gather'");
  says(message_of("topk", "econtrol:momentum=1"), "give 0 to less than 1");
  EXPECT_THROW(resolve({TopK{}, {FeedbackKind::econtrol, 0.0, 1.0}}), UsageError);
  EXPECT_THROW(resolve({TopK{}, {FeedbackKind::error_feedback, {}, 0.5}}), UsageError);
  says(message_of("bf16", "econtrol"), "choose from bf16 x error_feedback x two_stage");
  says(message_of("sign", "auto", "all_reduce"), "choose from sign x error_feedback x two_stage");
  says(message_of("quantize:bits=1,rounding=stochastic"), "give 2 bits or more, feedback none");
  EXPECT_EQ(message_of("quantize:bits=1,rounding=stochastic", "none"), "accepted");
  EXPECT_THROW(resolve({TopK{}, {FeedbackKind::econtrol, -1.0}}), UsageError);
  EXPECT_THROW(resolve({Sign{12}}), UsageError);
}

TEST(Eta, AWeightAboveTwiceTheDensityIsWarnedOf) {
  const auto warning = [](const char* codec, const char* feedback) {
    return divergence_warning(parse_compression(codec, feedback));
  };
  EXPECT_FALSE(warning("topk:density=0.1", "econtrol"));
  EXPECT_FALSE(warning("topk:density=0.1", "econtrol:eta=0.2"));
  EXPECT_FALSE(warning("topk:density=0.1", "ef21"));
  EXPECT_FALSE(warning("sign", "econtrol:eta=1"));
  EXPECT_EQ(warning("topk:density=0.1", "econtrol:eta=0.3"),
            "feedback econtrol: eta is 0.3, more than twice the density 0.1 of topk, so training "
            "may diverge; give eta=auto or at most 0.2");
}

TEST(Feedback, OfOneBitOfAGridIsWarnedOf) {
  const auto warned = [](const char* codec, const char* feedback) {
    return divergence_warning(parse_compression(codec, feedback)).has_value();
  };
  EXPECT_TRUE(warned("quantize:bits=1", "auto"));
  EXPECT_TRUE(warned("quantize:bits=1", "econtrol"));
  EXPECT_FALSE(warned("quantize:bits=1", "none"));
  EXPECT_FALSE(warned("quantize:bits=2", "auto"));
  EXPECT_FALSE(warned("sign", "auto"));
}

TEST(Eta, FollowsTheContraction) {
  EXPECT_EQ(next_eta(0.0, 0.0, 0.0), 0);  // nothing was sent
  EXPECT_DOUBLE_EQ(next_eta(0.0, 4.0, 1.0), 0.075);
  EXPECT_DOUBLE_EQ(next_eta(0.05, 4.0, 1.0), 0.9 * 0.05 + 0.1 * 0.075);
  EXPECT_DOUBLE_EQ(next_eta(0.05, 4.0, 5.0), 0.9 * 0.05);  // no contraction at all
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(next_eta(0.05f, inf, inf), 0.05f);
  EXPECT_EQ(next_eta(0.05f, std::nanf(""), 0.f), 0.05f);
}

}  // namespace
}  // namespace thinwire
