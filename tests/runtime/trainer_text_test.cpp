// The trainer with a language model: many targets to a sample, and dropout.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <set>

#include "collectives/base/philox.h"
#include "collectives/threads/thread_communicator.h"
#include "examples/models/initialize.h"
#include "examples/models/models.h"
#include "runtime/data/load.h"
#include "runtime/layers/philox_dropout.h"
#include "runtime/trainer/trainer.h"

namespace thinwire {
namespace {

class Reports final : public TrainerObserver {
 public:
  void on_line(const std::string&) override {}
  void on_step(const StepReport& report) override { steps.push_back(report); }
  void on_evaluation(std::int64_t step, const Evaluation& result) override {
    evaluations[step] = result;
  }
  std::vector<StepReport> steps;
  std::map<std::int64_t, Evaluation> evaluations;
};

struct Outcome {
  EndReport end;
  std::vector<at::Tensor> weights;
  std::vector<StepReport> steps;
  std::map<std::int64_t, Evaluation> evaluations;
};

// A few words in random order: within a word the next letter is certain, so a model can do much
// better than letter frequencies.
std::string some_text() {
  const std::vector<std::string> words{"thin ", "wire ", "gradient ", "sends ", "few ", "bytes "};
  const Philox draws(1, PhiloxStream::synthetic_data, 0);
  std::string text;
  for (std::uint64_t i = 0; text.size() < 6000; ++i) text += words[draws.below(i, words.size())];
  return text;
}

double unigram_entropy(const std::string& text) {
  std::map<char, double> counts;
  for (const char c : text) ++counts[c];
  double entropy = 0;
  for (const auto& [c, count] : counts) {
    const double share = count / static_cast<double>(text.size());
    entropy -= share * std::log(share);
  }
  return entropy;
}

class TrainerTextTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/trainer-text-" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    std::ofstream(folder_ + "/text") << some_text();
    options_.model = "gpt:layers=2,heads=2,width=16,dropout=0";
    options_.data = "text:" + folder_ + "/text,context=16";
    options_.output = folder_ + "/run";
    options_.optimizer = "adamw";
    options_.lr = 0.01;
    options_.batch_size = 3;
    options_.steps = 30;
    options_.report_every = 10;
    options_.bucket_mb = 0.002;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // The outcome of rank 0. `stop_after`: steps; -1: none. `change` may change each rank's model.
  Outcome run(int ranks, const TrainOptions& options, at::ScalarType dtype = at::kFloat,
              std::int64_t stop_after = -1, const std::function<void(Model&)>& change = {}) const {
    Outcome outcome;
    const DataSplit data = load_data(options.data);
    PosixFileSystem files;
    run_ranks(ranks, [&](auto transport) {
      const int rank = transport->rank();
      const auto meter = std::make_shared<Meter>();
      const auto communicator = make_metered(std::move(transport), meter);
      Model model = make_model(options.model, *data.train);
      initialize_parameters(*model.module, options.seed);
      model.module->to(dtype);
      if (change) change(model);
      Reports reports;
      Trainer* current = nullptr;
      Trainer trainer(
          {.model = model,
           .data = data,
           .communicator = *communicator,
           .meter = *meter,
           .files = files,
           .observer = reports,
           .stop_requested =
               [&] { return stop_after >= 0 && current->attempted_steps() >= stop_after; }},
          options);
      current = &trainer;
      trainer.resume();
      const EndReport end = trainer.run();
      if (rank != 0) return;
      outcome = {
          .end = end, .weights = {}, .steps = reports.steps, .evaluations = reports.evaluations};
      for (const auto& parameter : trainer.parameters()) {
        outcome.weights.push_back(parameter.tensor.detach().clone());
      }
    });
    return outcome;
  }

  std::string folder_;
  TrainOptions options_;
};

double relative_difference(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, ((a[i] - b[i]).abs().max() / b[i].abs().max()).item<double>());
  }
  return worst;
}

// An epoch has 337 samples: 28 steps of 12 and one that four ranks cannot share.
TEST_F(TrainerTextTest, RanksTimesBatchEqualsOneRankInDoublePrecision) {
  const auto with = [&](int ranks, std::int64_t batch, std::int64_t accumulate) {
    TrainOptions options = options_;
    options.batch_size = batch;
    options.accumulate = accumulate;
    // Adam divides by gradients that are nearly zero, and would show their last bits.
    options.optimizer = "sgd";
    options.lr = 0.1;
    options.clip_norm = 1;
    return run(ranks, options, at::kDouble).weights;
  };
  const auto alone = with(1, 12, 1);
  EXPECT_LT(relative_difference(with(4, 3, 1), alone), 1e-10);
  EXPECT_LT(relative_difference(with(2, 3, 2), alone), 1e-10);
  EXPECT_GT(relative_difference(with(1, 6, 1), alone), 1e-3) << "the oracle sees no difference";
}

// Against one step by hand, on the samples that come first in the order.
TEST_F(TrainerTextTest, StepsDownTheMeanOverCharacters) {
  options_.optimizer = "sgd";
  options_.lr = 0.5;
  options_.steps = 1;
  const auto stepped = run(2, options_, at::kDouble).weights;
  const DataSplit data = load_data(options_.data);
  const Model model = make_model(options_.model, *data.train);
  initialize_parameters(*model.module, options_.seed);
  model.module->to(at::kDouble);
  EpochOrder order(data.train->size(), options_.seed);
  const Batch batch = data.train->batch(order(0).first(6), at::kDouble);
  torch::cross_entropy_loss(model.forward(batch.input).flatten(0, 1), batch.target.flatten())
      .backward();
  const torch::NoGradGuard no_grad;
  std::vector<at::Tensor> expected;
  for (const auto& parameter : model.module->parameters()) {
    expected.push_back(parameter - 0.5 * parameter.grad());
  }
  EXPECT_LT(relative_difference(stepped, expected), 1e-12);
}

// A layer beside the model shows the masks that each pass draws.
TEST_F(TrainerTextTest, EveryRankStepAndMicroBatchHasItsMasks) {
  options_.steps = 3;
  options_.accumulate = 2;
  std::mutex mutex;
  std::set<std::vector<float>> masks;
  std::size_t passes = 0;
  const auto run_with_probe = [&](std::uint64_t seed) {
    options_.seed = seed;
    run(2, options_, at::kFloat, -1, [&](Model& model) {
      const auto probe =
          model.module->register_module("probe", std::make_shared<PhiloxDropout>(.5));
      model.forward = [&, probe, forward = model.forward](const at::Tensor& input) {
        const at::Tensor mask = probe->forward(at::ones({64}));
        if (probe->is_training()) {
          const std::lock_guard lock(mutex);
          masks.insert({mask.const_data_ptr<float>(), mask.const_data_ptr<float>() + 64});
          ++passes;
        }
        return forward(input);
      };
    });
  };
  run_with_probe(1);
  EXPECT_EQ(passes, 12u);
  EXPECT_EQ(masks.size(), 12u);
  run_with_probe(1);
  EXPECT_EQ(masks.size(), 12u);
  run_with_probe(2);
  EXPECT_EQ(masks.size(), 24u);
}

TEST_F(TrainerTextTest, ResumeIsBitIdenticalWithDropout) {
  for (const char* compressor : {"none", "sign:block=64"}) {
    TrainOptions whole = options_;
    whole.model = "gpt:layers=2,heads=2,width=16,dropout=0.2";
    whole.accumulate = 2;
    whole.compressor = compressor;
    whole.output = folder_ + "/whole-" + compressor;
    const Outcome expected = run(2, whole);

    TrainOptions part = whole;
    part.output = folder_ + "/part-" + compressor;
    const Outcome stopped = run(2, part, at::kFloat, 11);
    EXPECT_TRUE(stopped.end.stopped);
    part.resume = "auto";
    EXPECT_EQ(run(2, part).end.parameters_hash, expected.end.parameters_hash);
    EXPECT_EQ(run(2, part).end.test_loss, expected.end.test_loss);
  }
}

// Dropout is on, depends on the seed alone, and is the same whatever libtorch's threads.
TEST_F(TrainerTextTest, DropoutIsPartOfTheRunAndReproducible) {
  options_.steps = 6;
  const auto hash = [&](const char* dropout) {
    TrainOptions options = options_;
    options.model = std::string("gpt:layers=2,heads=2,width=16,dropout=") + dropout;
    return run(2, options).end.parameters_hash;
  };
  const std::string dropped = hash("0.2");
  EXPECT_EQ(hash("0.2"), dropped);
  EXPECT_NE(hash("0"), dropped);
}

// GPT's initial logits are small, so its first loss is that of a uniform guess, per character.
TEST_F(TrainerTextTest, ReportsLossPerCharacter) {
  options_.steps = 1;
  options_.lr = 0;
  const Outcome outcome = run(2, options_);
  const double guess = std::log(static_cast<double>(load_data(options_.data).train->classes()));
  EXPECT_NEAR(outcome.steps[0].loss, guess, 0.05);
  EXPECT_NEAR(outcome.end.test_loss, guess, 0.05);
  EXPECT_LT(outcome.end.test_accuracy, 0.3);
}

// Against the definition, one sample at a time.
TEST_F(TrainerTextTest, EvaluatesOverAllCharacters) {
  const DataSplit data = load_data(options_.data);
  const Outcome outcome = run(3, options_, at::kDouble);
  const Model model = make_model(options_.model, *data.train);
  const torch::NoGradGuard no_grad;
  model.module->to(at::kDouble);
  model.module->eval();
  auto parameters = model.module->parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].copy_(outcome.weights[i]);
  double loss = 0;
  double right = 0;
  for (std::int64_t i = 0; i < data.test->size(); ++i) {
    const std::vector<std::int64_t> index{i};
    const Batch batch = data.test->batch(index, at::kDouble);
    const at::Tensor logits = model.forward(batch.input)[0].log_softmax(1);
    for (std::int64_t place = 0; place < 16; ++place) {
      const auto target = batch.target[0][place].item<std::int64_t>();
      loss -= logits[place][target].item<double>();
      right += logits[place].argmax().item<std::int64_t>() == target ? 1 : 0;
    }
  }
  const auto characters = static_cast<double>(16 * data.test->size());
  EXPECT_NEAR(outcome.end.test_loss, loss / characters, 1e-12);
  EXPECT_EQ(outcome.end.test_accuracy, right / characters);
  ASSERT_TRUE(outcome.evaluations.contains(30));
  EXPECT_EQ(outcome.evaluations.at(30).loss, outcome.end.test_loss);
}

TEST_F(TrainerTextTest, Bf16TrainsNearlyTheSameWeightsInFp32) {
  options_.lr = 0.001;
  const Outcome exact = run(2, options_);
  options_.precision = "bf16";
  const Outcome rounded = run(2, options_);
  EXPECT_NE(rounded.end.parameters_hash, exact.end.parameters_hash);
  EXPECT_EQ(run(2, options_).end.parameters_hash, rounded.end.parameters_hash);
  EXPECT_EQ(rounded.weights[0].scalar_type(), at::kFloat);
  EXPECT_NEAR(rounded.end.test_loss, exact.end.test_loss, 0.02 * exact.end.test_loss);
}

TEST_F(TrainerTextTest, LearnsMoreThanLetterFrequencies) {
  options_.model = "gpt:layers=2,heads=2,width=32,dropout=0.1";
  options_.batch_size = 8;
  options_.steps = 120;
  const Outcome outcome = run(2, options_);
  EXPECT_LT(outcome.end.test_loss, unigram_entropy(some_text()) / 2);
  EXPECT_GT(outcome.end.test_accuracy, 0.6);
}

}  // namespace
}  // namespace thinwire
