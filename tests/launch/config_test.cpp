#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "launch/command_line.h"
#include "runtime/base/error.h"

namespace thinwire {
namespace {

using testing::HasSubstr;

TrainRequest read(const std::string& text) {
  std::istringstream stream(text);
  TrainRequest request;
  read_config(stream, "run.ini", request);
  return request;
}

using Map = std::map<std::string, std::string>;

Map map_of(const TrainRequest& request) {
  return as_map(request);
}

TEST(Config, CommentsBlanksAndLineEndsOfAnyKind) {
  const TrainRequest request = read(
      "# a comment\n"
      "\n"
      "   # another\n"
      "  lr=0.5   # behind a value\r\n"
      "\t model =  mlp:hidden=64,32 \n"
      "resume =\n"
      "epochs = 7");
  EXPECT_EQ(request.lr, 0.5);
  EXPECT_EQ(request.model, "mlp:hidden=64,32");
  EXPECT_EQ(request.resume, "");
  EXPECT_EQ(request.epochs, 7);
}

TEST(Config, AnEmptyFileChangesNothing) {
  EXPECT_EQ(map_of(read("")), map_of(TrainRequest{}));
}

TEST(Config, WhatWasPrintedReadsBackAsTheSame) {
  // Nothing here is a default, and the numbers have no short decimal form.
  TrainRequest request;
  request.model = "mlp:hidden=64,32";
  request.data = "fashion-mnist:/data/a b=c";
  request.partition = "by_label:classes=3";
  request.batch_size = 1;
  request.accumulate = 65536;
  request.precision = "bf16";
  request.epochs = 1'000'000;
  request.steps = 123;
  request.optimizer = "adam:beta1=0.8";
  request.lr = 1.0 / 3;
  request.lr_schedule = "step:every=3";
  request.momentum = 0.1 + 0.2;
  request.weight_decay = 5e-324;
  request.clip_norm = 1e-7;
  request.compressor = "sign:block=64";
  request.feedback = "none";
  request.exchange = "two_stage";
  request.start_iter = 13;
  request.min_dimensions = 3;
  request.dense_below = 14;
  request.dense_names = "*.bias,head*";
  request.bucket_mb = 1.25;
  request.timeout = 86400;
  request.check_every = 7;
  request.ranks = 3;
  request.backend = "mpi";
  request.job_id = "one";
  request.device = "cpu";
  request.share_device = true;
  request.seed = 9223372036854775807u;
  request.output = "runs/\xff latin";
  request.checkpoint_every = 9;
  request.resume = "auto";
  request.report_every = 8;
  request.trace = "t.json";
  const Map defaults = map_of(TrainRequest{});
  for (const auto& [name, value] : map_of(request)) EXPECT_NE(value, defaults.at(name)) << name;

  const std::string text = config_text(request);
  const TrainRequest back = read(text);
  EXPECT_EQ(map_of(back), map_of(request));
  EXPECT_EQ(back.lr, request.lr);
  EXPECT_EQ(back.momentum, request.momentum);
  EXPECT_EQ(back.weight_decay, request.weight_decay);
  EXPECT_EQ(config_text(back), text);
}

TEST(Config, DefaultsReadBackOverAnything) {
  TrainRequest request;
  request.resume = "auto";
  request.lr = 3;
  std::istringstream stream(config_text(TrainRequest{}));
  read_config(stream, "run.ini", request);
  EXPECT_EQ(map_of(request), map_of(TrainRequest{}));
}

TEST(Config, PrintedWithGroupsUnitsAndRanges) {
  const std::string text = config_text(TrainRequest{});
  EXPECT_THAT(text, HasSubstr("\n\n[Communication]\n"));
  EXPECT_THAT(text,
              HasSubstr("\n# seconds that a collective may take (1 to 86400)\ntimeout = 60\n"));
}

TEST(Config, WhatAFileCannotHoldIsNotPrinted) {
  for (const std::string value : {"a#b", " a", "a ", "a\nlr = 3", "a\r"}) {
    TrainRequest request;
    request.output = value;
    EXPECT_THROW(config_text(request), UsageError) << value;
  }
}

TEST(Config, TheMapHasEveryOption) {
  TrainRequest request;
  request.lr = 0.25;
  request.ranks = 4;
  const Map map = as_map(request);
  EXPECT_EQ(map.size(), options_table().size());
  EXPECT_EQ(map.at("lr"), "0.25");
  EXPECT_EQ(map.at("ranks"), "4");
  EXPECT_EQ(map.at("resume"), "");
}

TEST(Config, SectionsGroupSettings) {
  const TrainRequest request = read(
      "lr = 0.5\n"
      "[communication]  # how gradients travel\n"
      "compressor = topk:density=0.02\n"
      "feedback = econtrol:eta=auto\n"
      "  [Data and model]\r\n"
      "model = mlp\r\n"
      "[COMMUNICATION]\n"
      "start-iter = 7");
  EXPECT_EQ(request.lr, 0.5);
  EXPECT_EQ(request.compressor, "topk:density=0.02");
  EXPECT_EQ(request.feedback, "econtrol:eta=auto");
  EXPECT_EQ(request.model, "mlp");
  EXPECT_EQ(request.start_iter, 7);
}

struct BadFile {
  std::string text;
  std::string message;
};

TEST(Config, BadOnesAreRefusedWithTheirMessage) {
  const std::vector<BadFile> table{
      {"lr = 1\nmomentun = 0.5\n",
       "run.ini:2: unknown key 'momentun'; did you mean 'momentum'? `thinwire train "
       "--help` lists all"},
      {"--lr = 1",
       "run.ini:1: unknown key '--lr'; did you mean 'lr'? `thinwire train --help` lists "
       "all"},
      {"print-config = 1",
       "run.ini:1: unknown key 'print-config'; `thinwire train --help` lists all"},
      {"= 1", "run.ini:1: '= 1' is no setting; write KEY = VALUE"},
      {"\n\nlr 1", "run.ini:3: 'lr 1' is no setting; write KEY = VALUE"},
      {"[optimiser]\nlr = 1",
       "run.ini:1: no section [optimiser]; give one of [Data and model], [Length], [Optimizer], "
       "[Communication], [Run]"},
      {"[]",
       "run.ini:1: no section []; give one of [Data and model], [Length], [Optimizer], "
       "[Communication], [Run]"},
      {"[Run", "run.ini:1: '[Run' is no setting; write KEY = VALUE"},
      {"[Run # x]", "run.ini:1: '[Run # x]' is no setting; write KEY = VALUE"},
      {"[communication]\ncompressor = sign\nlr = 1",
       "run.ini:3: lr is no setting of [Communication]; move it to [Optimizer]"},
      {"lr = 1\n# x\nlr = 1", "run.ini:3: lr is given twice; give it once"},
      {"\nlr = fast", "run.ini:2: lr is 'fast'; give a number from 0 to 1000"},
      {"lr =", "run.ini:1: lr is ''; give a number from 0 to 1000"},
      {"lr = -1", "run.ini:1: lr is '-1'; give a number from 0 to 1000"},
      {"epochs = 0", "run.ini:1: epochs is '0'; give a whole number from 1 to 1000000"},
      {"model =", "run.ini:1: model is empty; give it a value"}};
  for (const auto& [text, message] : table) {
    try {
      read(text);
      ADD_FAILURE() << "accepted; expected: " << message;
    } catch (const UsageError& error) {
      EXPECT_EQ(error.what(), message);
    }
  }
}

}  // namespace
}  // namespace thinwire
