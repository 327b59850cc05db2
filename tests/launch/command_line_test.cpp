#include "launch/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "collectives/base/error.h"

namespace thinwire {
namespace {

using testing::HasSubstr;
using Arguments = std::vector<std::string>;

std::string write_file(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + "/" + name;
  std::ofstream(path) << text;
  return path;
}

TEST(CommandLine, DefaultsAreThoseOfTheStruct) {
  const CommandLine line = parse_command_line({"train"});
  EXPECT_EQ(line.command, Command::train);
  EXPECT_EQ(as_map(line.train), as_map(TrainRequest{}));
}

TEST(CommandLine, EveryFlagReachesItsField) {
  const CommandLine line = parse_command_line({"train",
                                               "--model",
                                               "mlp:hidden=64,32",
                                               "--data",
                                               "synthetic",
                                               "--partition",
                                               "by_label:classes=2",
                                               "--batch-size",
                                               "8",
                                               "--accumulate",
                                               "2",
                                               "--epochs",
                                               "3",
                                               "--steps",
                                               "40",
                                               "--optimizer",
                                               "adam",
                                               "--lr",
                                               "0.25",
                                               "--lr-schedule",
                                               "cosine:warmup=5",
                                               "--momentum",
                                               "0.5",
                                               "--weight-decay",
                                               "0.125",
                                               "--clip-norm",
                                               "2",
                                               "--compressor",
                                               "sign",
                                               "--feedback",
                                               "none",
                                               "--exchange",
                                               "two_stage",
                                               "--start-iter",
                                               "13",
                                               "--min-dimensions",
                                               "3",
                                               "--dense-below",
                                               "14",
                                               "--dense-names",
                                               "*.bias,head*",
                                               "--timeout",
                                               "7",
                                               "--ranks",
                                               "4",
                                               "--seed",
                                               "9223372036854775807",
                                               "--output",
                                               "out",
                                               "--resume",
                                               "auto",
                                               "--checkpoint-every",
                                               "11",
                                               "--report-every",
                                               "12",
                                               "--trace",
                                               "trace.json"});
  const TrainRequest& t = line.train;
  EXPECT_EQ(t.model, "mlp:hidden=64,32");
  EXPECT_EQ(t.data, "synthetic");
  EXPECT_EQ(t.partition, "by_label:classes=2");
  EXPECT_EQ(t.batch_size, 8);
  EXPECT_EQ(t.accumulate, 2);
  EXPECT_EQ(t.epochs, 3);
  EXPECT_EQ(t.steps, 40);
  EXPECT_EQ(t.optimizer, "adam");
  EXPECT_EQ(t.lr, 0.25);
  EXPECT_EQ(t.lr_schedule, "cosine:warmup=5");
  EXPECT_EQ(t.momentum, 0.5);
  EXPECT_EQ(t.weight_decay, 0.125);
  EXPECT_EQ(t.clip_norm, 2);
  EXPECT_EQ(t.compressor, "sign");
  EXPECT_EQ(t.feedback, "none");
  EXPECT_EQ(t.exchange, "two_stage");
  EXPECT_EQ(t.start_iter, 13);
  EXPECT_EQ(t.min_dimensions, 3);
  EXPECT_EQ(t.dense_below, 14);
  EXPECT_EQ(t.dense_names, "*.bias,head*");
  EXPECT_EQ(t.timeout, 7);
  EXPECT_EQ(t.ranks, 4);
  EXPECT_EQ(t.seed, 9223372036854775807u);
  EXPECT_EQ(t.output, "out");
  EXPECT_EQ(t.resume, "auto");
  EXPECT_EQ(t.checkpoint_every, 11);
  EXPECT_EQ(t.report_every, 12);
  EXPECT_EQ(t.trace, "trace.json");
}

TEST(CommandLine, Commands) {
  EXPECT_EQ(parse_command_line({"info"}).command, Command::info);
  EXPECT_EQ(parse_command_line({"help"}).command, Command::help);
  EXPECT_EQ(parse_command_line({"--help"}).command, Command::help);
  EXPECT_EQ(parse_command_line({"-h"}).command, Command::help);
  EXPECT_EQ(parse_command_line({"info", "--help"}).command, Command::help);
  EXPECT_EQ(parse_command_line({"verify", "--help"}).command, Command::help);
  EXPECT_EQ(parse_command_line({"help", "train"}).command, Command::train_help);
  EXPECT_EQ(parse_command_line({"train", "--lr", "1", "--help"}).command, Command::train_help);
  EXPECT_EQ(parse_command_line({"train", "--print-config"}).command, Command::print_config);
  const CommandLine verify = parse_command_line({"verify", "runs/x"});
  EXPECT_EQ(verify.command, Command::verify);
  EXPECT_EQ(verify.folder, "runs/x");
}

TEST(CommandLine, FlagOverFileOverDefault) {
  const std::string file =
      write_file("precedence.ini", "lr = 0.2\nmomentum = 0.3\nresume = auto\n");
  const CommandLine line =
      parse_command_line({"train", "--lr=0.7", "--config", file, "--resume", ""});
  EXPECT_EQ(line.train.lr, 0.7);
  EXPECT_EQ(line.train.momentum, 0.3);
  EXPECT_EQ(line.train.resume, "");
  EXPECT_EQ(line.train.epochs, 1);
}

TEST(CommandLine, AValueMayStartWithOneDash) {
  EXPECT_EQ(parse_command_line({"train", "--output", "-x"}).train.output, "-x");
}

TEST(CommandLine, RangesAreInclusive) {
  EXPECT_EQ(parse_command_line({"train", "--timeout", "86400"}).train.timeout, 86400);
  EXPECT_EQ(parse_command_line({"train", "--timeout", "1"}).train.timeout, 1);
}

struct BadLine {
  Arguments arguments;
  std::string message;
};

TEST(CommandLine, BadOnesAreRefusedWithTheirMessage) {
  const std::string only_flags = "belongs to no flag; `thinwire train` takes only --FLAG VALUE";
  const std::vector<BadLine> table{
      {{}, "no command; give train, advise, bench, verify, info, help"},
      {{"trian"},
       "unknown command 'trian'; did you mean 'train'? give train, advise, bench, verify, info, "
       "help"},
      {{"train", "--lrr", "1"},
       "unknown flag --lrr; did you mean '--lr'? `thinwire train --help` lists all"},
      {{"train", "--batch_size=1"},
       "unknown flag --batch_size; did you mean '--batch-size'? `thinwire train --help` "
       "lists all"},
      {{"train", "--comp", "sign"},
       "unknown flag --comp; did you mean '--compressor'? `thinwire train --help` lists "
       "all"},
      {{"train", "--qqqqqqqqqqqqqqqq"},
       "unknown flag --qqqqqqqqqqqqqqqq; `thinwire train --help` lists all"},
      {{"train", "--lr", "1", "--lr", "1"}, "--lr is given twice; give it once"},
      {{"train", "--lr", "1", "--lr=2"}, "--lr is given twice; give it once"},
      {{"train", "--lr"}, "--lr lacks its value; write --lr VALUE"},
      {{"train", "--lr="}, "--lr lacks its value; write --lr VALUE"},
      {{"train", "--output", "--lr", "1"}, "--output lacks its value; write --output VALUE"},
      {{"train", "--config"}, "--config lacks its value; write --config VALUE"},
      {{"train", "--print-config=1"}, "--print-config takes no value; leave out the '=...'"},
      {{"train", "fast"}, "'fast' " + only_flags},
      {{"train", "--", "fast"}, "'fast' " + only_flags},
      {{"train", "--lr", "1", "2"}, "'2' " + only_flags},
      {{"train", "-l", "1"}, "'-l' " + only_flags},
      {{"train", "--batch-size", "0"},
       "--batch-size is '0'; give a whole number from 1 to 1048576"},
      {{"train", "--batch-size", "1.5"},
       "--batch-size is '1.5'; give a whole number from 1 to 1048576"},
      {{"train", "--ranks", "257"}, "--ranks is '257'; give a whole number from 1 to 256"},
      {{"train", "--timeout", "86401"},
       "--timeout is '86401'; give a whole number from 1 to 86400"},
      {{"train", "--seed", "-1"},
       "--seed is '-1'; give a whole number from 0 to 9223372036854775807"},
      {{"train", "--lr", "-1"}, "--lr is '-1'; give a number from 0 to 1000"},
      {{"train", "--lr", "0.1x"}, "--lr is '0.1x'; give a number from 0 to 1000"},
      {{"train", "--lr", "nan"}, "--lr is 'nan'; give a number from 0 to 1000"},
      {{"train", "--lr", "inf"}, "--lr is 'inf'; give a number from 0 to 1000"},
      {{"train", "--momentum", "1"}, "--momentum is '1'; give a number from 0 to 0.9999"},
      {{"train", "--model", ""}, "--model is empty; give it a value"},
      {{"train", "--print-config", "--lr", "2000"}, "--lr is '2000'; give a number from 0 to 1000"},
      {{"verify"}, "verify takes one folder, not ''; write thinwire verify FOLDER"},
      {{"verify", "a", "b"}, "verify takes one folder, not 'a b'; write thinwire verify FOLDER"},
      {{"verify", "--all"}, "verify takes one folder, not '--all'; write thinwire verify FOLDER"},
      {{"info", "x"}, "info takes no 'x'; leave it out"},
      {{"help", "verify"}, "help takes no 'verify'; leave it out"}};
  for (const auto& [arguments, message] : table) {
    try {
      parse_command_line(arguments);
      ADD_FAILURE() << "accepted; expected: " << message;
    } catch (const UsageError& error) {
      EXPECT_EQ(error.what(), message);
    }
  }
}

TEST(CommandLine, AConfigFileThatCannotBeReadIsAnInputOutputError) {
  const std::string folder = testing::TempDir();
  for (const std::string& path : {folder, folder + "/missing.ini"}) {
    try {
      parse_command_line({"train", "--config", path});
      FAIL() << path;
    } catch (const IoError& error) {
      EXPECT_THAT(error.what(), HasSubstr("--config: cannot read '" + path + "': "));
    }
  }
}

TEST(CommandLine, HelpNamesEveryOptionWithItsDefaultAndRange) {
  const std::string help = train_help_text();
  for (const auto& option : options_table()) {
    EXPECT_THAT(help, HasSubstr("--" + option.name + " " + option.placeholder()));
    EXPECT_THAT(help, HasSubstr("\n" + option.group + ":\n"));
  }
  EXPECT_THAT(help, HasSubstr("--lr X (=0.1)"));
  EXPECT_THAT(help, HasSubstr("seconds that a collective may take (1 to 86400)"));
}

TEST(CommandLine, HelpFitsTheScreen) {
  for (const std::string& text : {help_text(), train_help_text()}) {
    std::size_t start = 0;
    for (std::size_t end = text.find('\n'); end != std::string::npos;
         end = text.find('\n', start)) {
      EXPECT_LE(end - start, 100u) << text.substr(start, end - start);
      start = end + 1;
    }
  }
}

}  // namespace
}  // namespace thinwire
