#include "runtime/trainer/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <filesystem>
#include <limits>
#include <mutex>
#include <thread>

#include "collectives/base/error.h"
#include "collectives/base/team.h"
#include "collectives/threads/thread_communicator.h"
#include "examples/models/initialize.h"
#include "examples/models/models.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/data/load.h"
#include "runtime/report/slowest_rank.h"
#include "tests/compression/support.h"

namespace thinwire {
namespace {

class Lines final : public TrainerObserver {
 public:
  void on_line(const std::string& line) override { lines.push_back(line); }
  void on_step(const StepReport& report) override { steps.push_back(report); }
  std::vector<std::string> lines;
  std::vector<StepReport> steps;
};

// Adds a value to the input of one rank at one step: where a NaN comes from.
struct Disturbance {
  int rank = -1;
  int from_step = 0;
  int until_step = 0;
  double value = 0;
};

struct Outcome {
  EndReport end;
  std::vector<at::Tensor> weights;
  std::vector<StepReport> steps;
  std::vector<std::string> lines;
};

struct Job {
  TrainOptions options;
  int ranks = 1;
  int exchange_threads = 1;
  at::ScalarType dtype = at::kFloat;
  Disturbance disturbance;
  int stop_after = -1;  // this many forward passes on rank 0
  // Before each training forward pass, which counts from 0 on each rank.
  std::function<void(torch::nn::Module&, int rank, int step)> before_forward = {};
};

DataSplit data_for_tests() {
  return load_data("synthetic:samples=192,test_samples=64,size=8,classes=4,noise=0.5");
}

TrainOptions small_options() {
  TrainOptions options;
  options.model = "mlp:hidden=24,16";
  options.lr = 0.05;
  options.batch_size = 4;
  options.steps = 50;
  options.report_every = 10;
  options.bucket_mb = 0.002;
  options.output = ::testing::TempDir() + "/trainer";
  return options;
}

// Runs a job over threads; the outcome of rank 0.
Outcome run(const Job& job, const std::function<void(Trainer&, int rank)>& look = {}) {
  Outcome outcome;
  const DataSplit data = data_for_tests();
  PosixFileSystem files;
  run_ranks(job.ranks, [&](auto transport) {
    const int rank = transport->rank();
    const auto meter = std::make_shared<Meter>();
    const auto communicator = make_metered(std::move(transport), meter);
    Model model = make_model(job.options.model, data.train->sample_shape(), data.train->classes());
    initialize_parameters(*model.module, job.options.seed);
    model.module->to(job.dtype);
    int passes = 0;
    const auto forward = model.forward;
    const auto module = model.module;
    model.forward = [&passes, forward, module, rank, &job](const at::Tensor& x) {
      if (!module->is_training()) return forward(x);
      const int step = passes++;
      if (job.before_forward) job.before_forward(*module, rank, step);
      const Disturbance& bad = job.disturbance;
      const bool here = rank == bad.rank && step >= bad.from_step && step < bad.until_step;
      return forward(here ? x + bad.value : x);
    };
    Lines lines;
    const TrainerDevice several =
        host_device(*communicator, std::make_shared<Team>(job.exchange_threads));
    Trainer trainer(
        {.model = model,
         .data = data,
         .communicator = *communicator,
         .meter = *meter,
         .files = files,
         .observer = lines,
         .stop_requested =
             [&] { return job.stop_after >= 0 && rank == 0 && passes >= job.stop_after; },
         .device = job.exchange_threads > 1 ? &several : nullptr},
        job.options);
    trainer.resume();
    const EndReport end = trainer.run();
    if (look) look(trainer, rank);
    if (rank != 0) return;
    outcome.end = end;
    outcome.steps = lines.steps;
    outcome.lines = lines.lines;
    for (const auto& parameter : trainer.parameters()) {
      outcome.weights.push_back(parameter.tensor.detach().clone());
    }
  });
  return outcome;
}

double relative_difference(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, ((a[i] - b[i]).abs().max() / b[i].abs().max()).item<double>());
  }
  return worst;
}

class TrainerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/trainer-" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  Job job(int ranks, const std::string& compressor = "none") const {
    Job job;
    job.options = small_options();
    job.options.output = folder_ + "/" + std::to_string(counter_++);
    job.options.compressor = compressor;
    job.ranks = ranks;
    return job;
  }
  std::string folder_;
  mutable int counter_ = 0;
};

// 192 samples in global batches of 28: the last step of an epoch has 24, which 4 ranks x 4 + 3 x 4
// cannot share evenly with accumulation either.
// Codecs, the norm and the update, also of gradients that are decoded where they are used.
TEST_F(TrainerTest, ThreadsOfTheExchangeChangeNoBit) {
  for (const char* compressor : {"sign", "quantize:bits=4", "none"}) {
    for (const char* optimizer : {"sgd", "adam"}) {
      Job alone = job(2, compressor);
      alone.options.model = "mlp:hidden=600,200";
      alone.options.optimizer = optimizer;
      alone.options.momentum = optimizer == std::string("sgd") ? 0.9 : 0;
      alone.options.clip_norm = 0.5;
      alone.options.lr = 0.001;
      alone.options.steps = 6;
      alone.options.bucket_mb = 25;
      Job shared = alone;
      shared.exchange_threads = 3;
      const Outcome one = run(alone);
      const Outcome several = run(shared);
      for (std::size_t i = 0; i < one.weights.size(); ++i) {
        EXPECT_TRUE(one.weights[i].equal(several.weights[i])) << compressor << " " << optimizer;
      }
    }
  }
}

TEST_F(TrainerTest, RanksTimesBatchEqualsOneRankInDoublePrecision) {
  for (const char* optimizer : {"sgd", "adamw"}) {
    const auto with = [&](int ranks, std::int64_t batch, std::int64_t accumulate) {
      Job one = job(ranks);
      one.dtype = at::kDouble;
      one.options.optimizer = optimizer;
      one.options.lr = 0.01;
      one.options.weight_decay = 0.01;
      one.options.clip_norm = 1;
      one.options.batch_size = batch;
      one.options.accumulate = accumulate;
      return run(one).weights;
    };
    const auto alone = with(1, 28, 1);
    EXPECT_LT(relative_difference(with(4, 7, 1), alone), 1e-10) << optimizer;
    EXPECT_LT(relative_difference(with(2, 7, 2), alone), 1e-10) << optimizer;
    EXPECT_LT(relative_difference(with(7, 1, 4), alone), 1e-10) << optimizer;
    EXPECT_GT(relative_difference(with(1, 14, 1), alone), 1e-3) << "the oracle sees no difference";
  }
}

TEST_F(TrainerTest, MoreRanksThanSamplesInTheLastStep) {
  // 192 = 38 x 5 + 2: in the last step of an epoch three of five ranks have no sample.
  Job five = job(5);
  five.dtype = at::kDouble;
  five.options.batch_size = 1;
  five.options.steps = 80;
  Job one = job(1);
  one.dtype = at::kDouble;
  one.options.batch_size = 5;
  one.options.steps = 80;
  EXPECT_LT(relative_difference(run(five).weights, run(one).weights), 1e-10);
}

// A step of a whole epoch has the same samples however they are dealt: here 48, 96 and 48 of them.
TEST_F(TrainerTest, SamplesCountAlikeWhereRanksHaveMoreOrFewer) {
  const auto with = [&](int ranks, const std::string& partition) {
    Job whole = job(ranks);
    whole.dtype = at::kDouble;
    whole.options.partition = partition;
    whole.options.batch_size = 192 / ranks;
    whole.options.steps = 10;
    return run(whole).weights;
  };
  EXPECT_LT(relative_difference(with(3, "by_label"), with(1, "iid")), 1e-10);
}

TEST_F(TrainerTest, RunsAreBitReproducible) {
  for (const char* compressor : {"none", "sign:block=64"}) {
    const auto first = run(job(4, compressor)).end;
    const auto second = run(job(4, compressor)).end;
    EXPECT_EQ(first.parameters_hash, second.parameters_hash);
    EXPECT_EQ(first.parameters_hash.size(), 16u);
  }
}

TEST_F(TrainerTest, TrainingLearns) {
  for (const char* compressor : {"none", "sign:block=64"}) {
    Job one = job(4, compressor);
    one.options.steps = 200;
    const Outcome outcome = run(one);
    EXPECT_GT(outcome.end.test_accuracy, 0.9) << compressor;
    EXPECT_LT(outcome.steps.back().loss, outcome.steps.front().loss / 2);
  }
}

TEST_F(TrainerTest, ReportsSayWhatWasSent) {
  const Outcome dense = run(job(4));
  const Outcome coded = run(job(4, "sign:block=64"));
  const auto bytes = [](const Outcome& outcome) { return outcome.steps[2].bytes_wire; };
  // The control word and the loss ride along with a dense sum that is exactly a ring's.
  EXPECT_GE(bytes(dense), dense.steps[2].bytes_dense);
  EXPECT_LT(bytes(dense), dense.steps[2].bytes_dense * 1.01 + 100);
  EXPECT_LT(bytes(coded), bytes(dense) / 10);
  EXPECT_EQ(dense.steps[2].residual_ratio, 0);
  EXPECT_GT(coded.steps[2].residual_ratio, 0.1);
  EXPECT_EQ(run(job(1)).steps[0].bytes_dense, 0);
  EXPECT_EQ(run(job(1, "sign:block=64")).steps[0].bytes_wire, 0);
}

// The oracle of a dense start: as many steps without compression, and compression begun there.
TEST_F(TrainerTest, CompressionStartsAfterItsCommittedSteps) {
  Job late = job(3, "sign:block=64");
  late.options.steps = 30;
  late.options.start_iter = 12;
  late.options.report_every = 10;
  // A step that is rolled back does not count: steps 1 to 14 are dense.
  late.disturbance = {.rank = 1,
                      .from_step = 4,
                      .until_step = 6,
                      .value = std::numeric_limits<double>::quiet_NaN()};
  const Outcome outcome = run(late);
  ASSERT_EQ(outcome.steps.size(), 3u);
  EXPECT_EQ(outcome.steps[0].compressed_steps, 0);
  EXPECT_EQ(outcome.steps[1].compressed_steps, 6);
  EXPECT_EQ(outcome.steps[2].compressed_steps, 10);
  EXPECT_EQ(outcome.steps[2].steps, 10);
  EXPECT_GE(outcome.steps[0].bytes_wire, outcome.steps[0].bytes_dense);
  EXPECT_LT(outcome.steps[2].bytes_wire, outcome.steps[2].bytes_dense / 10);
  EXPECT_THAT(outcome.lines, ::testing::Contains("compression starts at step 15"));

  Job dense = late;
  dense.options.compressor = "none";
  Job always = late;
  always.options.start_iter = 0;
  for (Job* one : {&late, &dense, &always}) one->options.steps = 14;
  const Outcome until_then = run(late);
  EXPECT_EQ(until_then.end.parameters_hash, run(dense).end.parameters_hash);
  EXPECT_NE(until_then.end.parameters_hash, run(always).end.parameters_hash);
}

// The committed step that a checkpoint holds decides, not that of the process.
TEST_F(TrainerTest, AResumedRunStartsCompressionWhereTheOtherWouldHave) {
  for (const std::int64_t saved_at : {5, 20}) {
    Job whole = job(2, "sign:block=64");
    whole.options.steps = 30;
    whole.options.start_iter = 12;
    const Outcome uninterrupted = run(whole);
    Job first = job(2, "sign:block=64");
    first.options.steps = saved_at;
    first.options.start_iter = 12;
    run(first);
    Job second = first;
    second.options.steps = 30;
    second.options.resume = "auto";
    const Outcome resumed = run(second);
    EXPECT_EQ(resumed.end.parameters_hash, uninterrupted.end.parameters_hash) << saved_at;
    EXPECT_EQ(resumed.end.last.compressed_steps, saved_at < 12 ? 18 : 10);
    const auto starts = ::testing::Contains("compression starts at step 13");
    if (saved_at < 12) {
      EXPECT_THAT(resumed.lines, starts);
    } else {
      EXPECT_THAT(resumed.lines, ::testing::Not(starts));
    }
  }
}

TEST_F(TrainerTest, ThePolicyIsFollowedAndExplained) {
  std::vector<std::string> lines;
  Job picky = job(2, "sign:block=64");
  picky.options.dense_below = 200;
  picky.options.dense_names = "fc2*,*nothing*";
  picky.options.steps = 3;
  run(picky, [&](Trainer& trainer, int rank) {
    if (rank == 0) lines = trainer.describe_compression();
  });
  using ::testing::Contains;
  using ::testing::HasSubstr;
  EXPECT_THAT(lines, Contains(HasSubstr("uncompressed: a vector")));
  EXPECT_THAT(lines, Contains(HasSubstr("uncompressed: below 200 values")));
  EXPECT_THAT(lines, Contains(HasSubstr("uncompressed: name matches 'fc2*'")));
  EXPECT_THAT(lines, Contains("warning: no parameter's name matches '*nothing*' of dense_names; "
                              "correct it or leave it out"));
}

TEST_F(TrainerTest, ReportsSayWhereAStepsTimeWent) {
  const Outcome outcome = run(job(2, "sign:block=64"));
  const StepReport& whole = outcome.end.last;
  EXPECT_EQ(whole.steps, 50);
  EXPECT_GT(whole.step_seconds, 0);
  EXPECT_GT(whole.arithmetic_seconds, 0);
  EXPECT_LT(whole.arithmetic_seconds, whole.step_seconds);
  EXPECT_GE(whole.waited_seconds, 0);
  EXPECT_LT(whole.waited_seconds, whole.step_seconds);
}

TEST_F(TrainerTest, ANonFiniteStepIsSkippedByAllRanksAndCounted) {
  for (const char* compressor : {"none", "sign:block=64"}) {
    Job bad = job(3, compressor);
    bad.disturbance = {.rank = 1,
                       .from_step = 20,
                       .until_step = 23,
                       .value = std::numeric_limits<double>::quiet_NaN()};
    const Outcome outcome = run(bad);
    EXPECT_EQ(outcome.end.last.skipped, 3);
    EXPECT_EQ(outcome.end.last.step, 50);
    EXPECT_TRUE(std::isfinite(outcome.weights[0].sum().item<double>()));
  }
}

TEST_F(TrainerTest, ASkippedStepLeavesEveryByteOfState) {
  // 20 steps; or 20 steps and two more that are skipped: weights, optimizer and residuals equal.
  const auto state_after = [&](std::int64_t steps) {
    Job bad = job(3, "sign:block=64");
    bad.options.model = "resnet8";  // its running statistics are state too
    bad.options.optimizer = "adam";
    bad.options.steps = steps;
    bad.disturbance = {.rank = 2,
                       .from_step = 20,
                       .until_step = 30,
                       .value = std::numeric_limits<double>::infinity()};
    std::mutex mutex;
    std::vector<testing::Snapshot> ranks(3);
    const Outcome outcome = run(bad, [&](Trainer& trainer, int rank) {
      const std::lock_guard lock(mutex);
      trainer.visit(ranks[static_cast<std::size_t>(rank)]);
      ranks[static_cast<std::size_t>(rank)].counters.clear();
    });
    return std::pair(outcome.end.parameters_hash, ranks);
  };
  EXPECT_TRUE(state_after(20) == state_after(22));
}

TEST_F(TrainerTest, FiftySkipsInARowEndTheRunWithTheParametersName) {
  Job bad = job(2, "sign:block=64");
  bad.options.steps = 100;
  bad.disturbance = {.rank = 1,
                     .from_step = 5,
                     .until_step = 1000,
                     .value = std::numeric_limits<double>::quiet_NaN()};
  try {
    run(bad);
    FAIL() << "it ended";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::internal);
    EXPECT_NE(std::string(error.what()).find("50 steps in a row"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("gradient of fc"), std::string::npos) << error.what();
  }
}

TEST_F(TrainerTest, ResumeIsBitIdenticalAtTheSameWorldSize) {
  struct Case {
    const char* compressor;
    const char* optimizer;
    const char* model;
    const char* partition = "iid";
    const char* feedback = "auto";
    std::int64_t steps = 30;
  };
  for (const Case& c :
       {Case{"none", "sgd", "mlp:hidden=24,16"}, Case{"none", "adamw", "mlp"},
        Case{"sign:block=64", "sgd", "mlp:hidden=24,16"},
        Case{"sign:block=64", "sgd", "mlp:hidden=24,16", "by_label:classes=3"},
        Case{"powersgd:rank=2", "sgd", "mlp:hidden=24,16"},
        Case{"topk:density=0.1", "sgd", "mlp", "iid", "ef21:momentum=0.8"},
        Case{"quantize:bits=3", "adam", "mlp"},
        Case{"powersgd:rank=2", "adamw", "mlp:hidden=24,16"},
        Case{"sign:block=64", "sgd", "mlp", "iid", "econtrol"},
        Case{"sign:block=64", "lion", "mlp"}, Case{"sign:block=64", "adam:amsgrad=1", "resnet8"},
        Case{"sign:block=64", "sgd:momentum=0.5,exchange=momentum", "mlp"},
        // Stopped in the warm-up, at the freeze and behind it, with a refresh in each third step.
        Case{"auto", "onebit_adam:freeze_step=20", "mlp"},
        Case{"auto", "onebit_adam:freeze_step=12", "mlp"},
        Case{"powersgd:rank=2", "onebit_adam:freeze_step=5,refresh_every=3", "mlp"},
        Case{"sign:block=64", "onebit_adam:refresh_every=3", "mlp", "iid", "econtrol"},
        Case{"auto", "onebit_adam", "mlp", "iid", "auto", 200}}) {
    Job whole = job(3, c.compressor);
    whole.options.optimizer = c.optimizer;
    whole.options.model = c.model;
    whole.options.partition = c.partition;
    whole.options.feedback = c.feedback;
    whole.options.momentum = c.optimizer == std::string("sgd") ? 0.5 : 0;
    whole.options.lr = 0.01;
    whole.options.steps = c.steps;
    whole.options.clip_norm = c.steps > 30 ? 0.5 : 0;
    whole.options.lr_schedule = "cosine:warmup=5";
    const Outcome expected = run(whole);

    Job part = whole;
    part.options.output = whole.options.output + "-part";
    part.options.checkpoint_every = 7;
    part.stop_after = 11;  // stops after a step that no checkpoint was due for
    const Outcome stopped = run(part);
    EXPECT_TRUE(stopped.end.stopped);
    EXPECT_TRUE(stopped.end.checkpoint_is_current);
    EXPECT_LT(stopped.end.last.step, 15);
    part.stop_after = -1;
    part.options.resume = "auto";
    const Outcome resumed = run(part);
    EXPECT_EQ(resumed.end.parameters_hash, expected.end.parameters_hash)
        << c.compressor << " " << c.optimizer << " " << c.model << " " << c.partition;
    EXPECT_EQ(resumed.end.test_loss, expected.end.test_loss);
  }
}

// Half an epoch of one partition and the rest of another would be some samples twice, some never.
TEST_F(TrainerTest, ResumeRefusesAnotherPartition) {
  Job made = job(2);
  made.options.partition = "by_label";
  made.options.steps = 5;
  run(made);
  const auto refusal = [&](int ranks, const std::string& partition) -> std::string {
    Job resumed = made;
    resumed.ranks = ranks;
    resumed.options.partition = partition;
    resumed.options.resume = "auto";
    try {
      run(resumed);
    } catch (const AgreedError& error) {
      return error.what();
    }
    return {};
  };
  EXPECT_EQ(refusal(2, "by_label"), "");
  EXPECT_EQ(refusal(2, "by_label:classes=2"), "");  // which is what by_label means here
  EXPECT_THAT(refusal(2, "iid"), ::testing::HasSubstr("classes=2 of 2 ranks, this run has iid"));
  EXPECT_THAT(refusal(2, "by_label:classes=3"), ::testing::HasSubstr("data partition"));
  EXPECT_THAT(refusal(4, "by_label:classes=2"), ::testing::HasSubstr("classes=2 of 4 ranks"));
}

// What the owners sent and what all ranks sent add up to different estimates: one in place of the
// other would be off by a constant for ever.
TEST_F(TrainerTest, ResumeRefusesTheEstimateOfAnotherExchange) {
  for (const auto& [before, after, lacks] :
       {std::tuple{"two_stage", "all_gather", "'estimate/"},
        std::tuple{"all_gather", "two_stage", "'estimate_of_owners/"}}) {
    Job made = job(2, "topk:density=0.1");
    made.options.feedback = "econtrol:eta=0.05";
    made.options.exchange = before;
    made.options.steps = 5;
    run(made);
    Job resumed = made;
    resumed.options.resume = "auto";
    resumed.options.steps = 8;
    EXPECT_NO_THROW(run(resumed));
    resumed.options.exchange = after;
    resumed.options.steps = 10;
    try {
      run(resumed);
      ADD_FAILURE() << before << " was resumed as " << after;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_data);
      EXPECT_THAT(error.what(), ::testing::HasSubstr(lacks));
    }
  }
}

TEST_F(TrainerTest, ResumeRefusesAPositionThatCannotBe) {
  Job made = job(2, "none");
  made.options.steps = 5;
  run(made);
  PosixFileSystem files;
  const std::string folder = checkpoint_folder(made.options.output + "/checkpoints", 5);
  Manifest manifest = read_manifest(files, folder);
  manifest.counters.at("consumed_samples") = 1'000'000;
  write_durably(files, folder, std::string(manifest_name), write_manifest(manifest));
  made.options.resume = folder;
  made.options.steps = 8;
  try {
    run(made);
    ADD_FAILURE() << "it was resumed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_data);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("1000000 samples of an epoch of "));
  }
}

TEST_F(TrainerTest, ResumeAtAnotherWorldSizeKeepsParametersOptimizerAndMeanResidual) {
  struct Total {
    std::vector<at::Tensor> weights;
    std::map<std::string, at::Tensor> replicated;  // the optimizer's state, factors, estimates
    std::map<std::string, at::Tensor> mean;        // residuals, trackers, averages of gradients
  };
  // Adds up every rank's state; what owners keep of a residual counts with the workers'.
  const auto total_of = [&](const Job& work) {
    std::mutex mutex;
    Total total;
    const Outcome outcome = run(work, [&](Trainer& trainer, int rank) {
      testing::Snapshot state;
      trainer.visit(state);
      const std::lock_guard lock(mutex);
      for (const auto& [entry, copy] : state.entries) {
        constexpr std::string_view kOwners = "owner_";
        const bool of_owners = entry.name.starts_with("owner_residual/");
        const std::string name = of_owners ? entry.name.substr(kOwners.size()) : entry.name;
        if (entry.kind == StateKind::replicated) {
          if (rank == 0) total.replicated[name] = copy;
          continue;
        }
        at::Tensor& sum = total.mean[name];
        if (!sum.defined()) sum = torch::zeros({1 << 16}, torch::kDouble);
        if (entry.kind == StateKind::averaged) {
          sum.narrow(0, 0, copy.numel()).add_(copy.flatten().to(torch::kDouble) / work.ranks);
        } else {
          sum.narrow(0, entry.begin, copy.numel()).add_(copy.to(torch::kDouble));
        }
      }
    });
    total.weights = outcome.weights;
    return total;
  };
  for (const auto& [compressor, feedback, optimizer, keeps] :
       {std::tuple{"sign:block=64", "auto", "adam", "residual/"},
        std::tuple{"powersgd:rank=2", "auto", "sgd", "factor/"},
        std::tuple{"quantize:bits=3", "econtrol", "adamw", "mean_tracker/"},
        std::tuple{"topk:density=0.1", "econtrol:eta=0.05,momentum=0.5", "sgd",
                   "averaged_gradient/"}}) {
    SCOPED_TRACE(compressor);
    Job four = job(4, compressor);
    four.options.feedback = feedback;
    four.options.optimizer = optimizer;
    four.options.momentum = optimizer == std::string("sgd") ? 0.5 : 0;
    four.options.steps = 20;
    const Total before = total_of(four);
    const auto has = [&](const std::map<std::string, at::Tensor>& state) {
      return std::ranges::any_of(state, [&](const auto& entry) {
        return entry.first.starts_with(keeps) &&
               entry.second.abs().max().template item<double>() > 0;
      });
    };
    EXPECT_TRUE(has(before.mean) || has(before.replicated)) << keeps;
    for (const int ranks : {1, 2, 3, 4, 5}) {
      Job other = four;
      other.ranks = ranks;
      // State has the parameters' names: other buckets change nothing.
      other.options.bucket_mb = ranks == 4 ? 0.0005 : four.options.bucket_mb;
      other.options.resume = "auto";  // nothing left to do: the state as it was loaded
      const Total after = total_of(other);
      EXPECT_EQ(relative_difference(after.weights, before.weights), 0);
      ASSERT_EQ(after.replicated.size(), before.replicated.size());
      for (const auto& [name, tensor] : before.replicated) {
        EXPECT_TRUE(after.replicated.at(name).equal(tensor)) << name;
      }
      ASSERT_EQ(after.mean.size(), before.mean.size());
      for (const auto& [name, sum] : before.mean) {
        EXPECT_LT((after.mean.at(name) - sum).abs().max().item<double>(), 1e-7) << name;
      }
    }
  }
}

TEST_F(TrainerTest, BuffersAreEachRanksOwnAndEvaluatedAtTheirMean) {
  Job one = job(3);
  one.options.model = "resnet8";
  one.options.steps = 4;
  std::mutex mutex;
  std::vector<at::Tensor> means;
  run(one, [&](Trainer& trainer, int) {
    testing::Snapshot state;
    trainer.visit(state);
    for (const auto& [entry, copy] : state.entries) {
      if (entry.name != "buffer/bn1.running_mean") continue;
      EXPECT_EQ(entry.kind, StateKind::averaged);
      const std::lock_guard lock(mutex);
      means.push_back(copy);
    }
  });
  ASSERT_EQ(means.size(), 3u);
  EXPECT_FALSE(means[0].equal(means[1]));
}

TEST_F(TrainerTest, DamagedWeightsAreFoundAtTheNextComparison) {
  const std::vector<std::tuple<int, int, int, std::string>> cases = {
      // damaged rank, check_every, steps until it is found, what is said
      {1, 10, 20, "parameter fc1.weight on rank 1 is not that of rank 0;"},
      {0, 10, 20, "parameter fc1.weight on rank 0 is not that of rank 1;"},
      {2, 0, 50, "parameter fc1.weight on rank 2 is not that of rank 0;"}};
  for (const auto& [damaged, check_every, expected, text] : cases) {
    std::atomic<int> steps{0};
    Job one = job(3);
    one.options.check_every = check_every;
    one.before_forward = [&, bad = damaged](torch::nn::Module& module, int rank, int step) {
      if (rank == bad) steps = step + 1;
      if (rank != bad || step != 12) return;
      const torch::NoGradGuard no_grad;
      module.named_parameters()["fc1.weight"].view(-1)[3].add_(1);
    };
    try {
      run(one);
      ADD_FAILURE() << "damage on rank " << damaged << " was not found";
    } catch (const RanksDisagree& error) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr(text));
    }
    EXPECT_EQ(steps, expected);
  }
}

TEST_F(TrainerTest, ASlowRankIsNamedOnceAndNotStopped) {
  Job one = job(3);
  one.options.steps = 30;
  one.before_forward = [](torch::nn::Module&, int rank, int step) {
    // Sleeping is as good as computing to those who wait.
    if (rank == 2 && step < 20) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  };
  const Outcome outcome = run(one);
  ASSERT_EQ(outcome.steps.size(), 3u);
  for (const std::size_t report : {0u, 1u}) {
    EXPECT_EQ(outcome.steps[report].slowest_rank, 2);
    EXPECT_GT(outcome.steps[report].slowest_ratio, 1.5);
  }
  EXPECT_EQ(std::count_if(outcome.lines.begin(), outcome.lines.end(),
                          [](const auto& line) { return line.starts_with("rank 2 is slow"); }),
            1);
}

TEST(SlowestRank, IsComparedWithTheMedianOfTheOthers) {
  const auto check = [](const std::vector<double>& seconds, int rank, double ratio) {
    const SlowestRank slowest = slowest_rank(seconds);
    EXPECT_EQ(slowest.rank, rank);
    EXPECT_EQ(slowest.ratio, ratio);
  };
  check({5}, 0, 1);
  check({1, 3}, 1, 3);
  check({1, 1, 4, 1}, 2, 4);
  check({8, 1, 2, 6, 2}, 0, 4);
  check({0, 0, 0}, 0, 1);
}

TEST_F(TrainerTest, ARolledBackStepIsSaidWithItsRank) {
  Job one = job(3);
  one.options.steps = 12;
  one.disturbance = {.rank = 1, .from_step = 4, .until_step = 6, .value = std::nan("")};
  const Outcome outcome = run(one);
  std::vector<std::string> said;
  for (const auto& line : outcome.lines) {
    if (line.find("rolled back") != std::string::npos) said.push_back(line);
  }
  // The first of two in a row.
  ASSERT_EQ(said.size(), 1u);
  EXPECT_THAT(said[0], ::testing::StartsWith("step 5 was rolled back: the gradient of "));
  EXPECT_THAT(said[0], ::testing::EndsWith("is not finite, nor is the loss on rank 1"));
}

}  // namespace
}  // namespace thinwire
