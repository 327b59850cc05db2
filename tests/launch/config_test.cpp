#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "collectives/base/error.h"
#include "launch/config.h"

namespace thinwire {
namespace {

using testing::HasSubstr;

TrainRequest read(const std::string& text) {
  TrainRequest request;
  read_config(text, "run.ini", request);
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
  request.threads = 2;
  request.exchange_threads = "3";
  request.kernels = "plain";
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
  read_config(config_text(TrainRequest{}), "run.ini", request);
  EXPECT_EQ(map_of(request), map_of(TrainRequest{}));
}

TEST(Config, PrintedWithGroupsUnitsAndRanges) {
  const std::string text = config_text(TrainRequest{});
  EXPECT_THAT(text, HasSubstr("\n\n[Communication]\n"));
  EXPECT_THAT(text,
              HasSubstr("\n# seconds that a collective may take (1 to 86400)\ntimeout = 60\n"));
}

TEST(Config, WhatAFileCannotHoldIsNotPrinted) {
  const std::vector<std::string> values{
      "a #b", " a", "a ", "a\nlr = 3", "a\r", "a\rb", std::string("a\0b", 3)};
  for (const std::string& value : values) {
    TrainRequest request;
    request.output = value;
    EXPECT_THROW(config_text(request), UsageError) << value;
  }
}

TEST(Config, ANumberSignWithinAWordIsNoComment) {
  EXPECT_EQ(read("output = runs/exp#3").output, "runs/exp#3");
  EXPECT_EQ(read("output = runs/exp#3 # the third\n").output, "runs/exp#3");
  EXPECT_EQ(read("output = runs/exp\t#3").output, "runs/exp");
  EXPECT_EQ(read("output =#3").output, "#3");
  EXPECT_EQ(read("resume = # none").resume, "");
  EXPECT_EQ(read("#output = a\n # b#c").output, TrainRequest{}.output);
  for (const std::string value : {"runs/exp#3", "#", "#3#", "a=#b", "a\vb"}) {
    TrainRequest request;
    request.output = value;
    EXPECT_EQ(read(config_text(request)).output, value);
  }
}

TEST(Config, AByteOrderMarkIsSkipped) {
  EXPECT_EQ(read("\ufefflr = 0.5").lr, 0.5);
  EXPECT_EQ(read("\ufeff").lr, TrainRequest{}.lr);
  // One that is elsewhere is shown.
  try {
    read("lr = 0.5\n\ufeffepochs = 1");
    ADD_FAILURE() << "accepted";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("run.ini:2: unknown key '\\xef\\xbb\\xbfepochs'; did you "
                                        "mean 'epochs'?"));
  }
}

TEST(Config, LinesEndInAnyWay) {
  for (const std::string end : {"\r", "\n", "\r\n"}) {
    const TrainRequest request = read("# a comment" + end + end + "lr = 0.5" + end + "epochs = 7");
    EXPECT_EQ(request.lr, 0.5);
    EXPECT_EQ(request.epochs, 7);
    EXPECT_THROW(read("lr = 0.5" + end + "lr = 0.5" + end), UsageError);
    try {
      read(end + end + "x" + end);
      ADD_FAILURE() << "accepted";
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), HasSubstr("run.ini:3: 'x' is no setting"));
    }
  }
}

class ConfigFile : public ::testing::Test {
 protected:
  ConfigFile() {
    std::string name = std::filesystem::temp_directory_path() / "thinwire-XXXXXX";
    folder_ = ::mkdtemp(name.data());
  }
  ~ConfigFile() override { std::filesystem::remove_all(folder_); }

  std::string make(const std::string& text) const {
    const std::string path = folder_ + "/run.ini";
    std::ofstream(path) << text;
    return path;
  }
  std::string make_pipe() const {
    const std::string path = folder_ + "/pipe";
    EXPECT_EQ(::mkfifo(path.c_str(), 0600), 0);
    return path;
  }

  std::string folder_;
};

std::string refusal(const std::string& file, std::chrono::milliseconds patience) {
  try {
    config_bytes(file, patience);
  } catch (const Error& error) {
    return error.what();
  }
  return "it was accepted";
}

constexpr std::chrono::seconds kPlenty(60);

TEST_F(ConfigFile, IsReadUpToOneMegabyte) {
  const std::string text(1 << 20, '#');
  EXPECT_EQ(config_bytes(make(text)), text);
  EXPECT_EQ(config_bytes(make("")), "");
  EXPECT_THAT(refusal(make(text + "#"), kPlenty), HasSubstr("has more than 1 MiB; "));
}

TEST_F(ConfigFile, DevicesAreRefused) {
  for (const std::string device : {"/dev/zero", "/dev/null"}) {
    EXPECT_THAT(refusal(device, kPlenty), HasSubstr("'" + device + "' is no file and no pipe; "));
  }
  const std::string link = folder_ + "/link";
  std::filesystem::create_symlink("/dev/zero", link);
  EXPECT_THAT(refusal(link, kPlenty), HasSubstr("is no file and no pipe; "));
  EXPECT_THAT(refusal(folder_, kPlenty), HasSubstr("Is a directory; "));
  EXPECT_THAT(refusal(folder_ + "/none", kPlenty), HasSubstr("No such file or directory; "));
}

TEST_F(ConfigFile, APipeIsReadToItsEnd) {
  const std::string pipe = make_pipe();
  std::thread writer([&] {
    std::ofstream stream(pipe);
    stream << "lr = 0.5\n" << std::flush;
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    stream << "epochs = 7\n";
  });
  const std::string text = config_bytes(pipe, kPlenty);
  writer.join();
  EXPECT_EQ(text, "lr = 0.5\nepochs = 7\n");
}

TEST_F(ConfigFile, APipeWithoutAWriterIsWaitedForAndRefused) {
  EXPECT_THAT(refusal(make_pipe(), std::chrono::milliseconds(30)),
              HasSubstr("is a pipe that did not end in time; "));
}

TEST_F(ConfigFile, APipeWhoseWriterDoesNotEndIsRefused) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_EQ(::write(ends[1], "lr", 2), 2);
  const std::string path = "/dev/fd/" + std::to_string(ends[0]);
  EXPECT_THAT(refusal(path, std::chrono::milliseconds(30)), HasSubstr("did not end in time; "));
  ::close(ends[1]);
  ::close(ends[0]);
}

TEST_F(ConfigFile, APipeThatGaveNothingIsNoDefault) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ::close(ends[1]);
  EXPECT_THAT(refusal("/dev/fd/" + std::to_string(ends[0]), kPlenty),
              HasSubstr("is a pipe that gave nothing; "));
  ::close(ends[0]);
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
      {std::string("lr = 1\nlr\0= 2", 13),
       "run.ini:2: has a byte of zero; save the file as UTF-8 text"},
      {"lr = 1\x1b[2J", "run.ini:1: lr is '1\\x1b[2J'; give a number from 0 to 1000"},
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
