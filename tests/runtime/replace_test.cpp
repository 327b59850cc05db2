// Parameters that take the place of others, and layouts that change, while a model is trained.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>
#include <map>
#include <mutex>

#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "collectives/compression/parse.h"
#include "collectives/threads/thread_communicator.h"
#include "runtime/data_parallel.h"
#include "runtime/trainer/trainer.h"
#include "tests/compression/support.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

constexpr int kRank = 2;  // of the factors

// One matrix W, or U and V with W = U V.
struct Net : torch::nn::Module {
  Net() {
    before = register_module("before", torch::nn::Linear(6, 12));
    weight = register_parameter("weight", torch::empty({8, 12}, torch::kDouble));
    after = register_module("after", torch::nn::Linear(8, 3));
    to(torch::kDouble);
    const torch::NoGradGuard no_grad;
    for (auto& item : named_parameters()) fill(item.key(), item.value());
  }
  static void fill(const std::string& name, const at::Tensor& values) {
    const Philox draws(1, PhiloxStream::initialization, hash64(name));
    at::Tensor flat = torch::empty({values.numel()}, torch::kDouble);
    for (std::int64_t i = 0; i < flat.numel(); ++i) {
      flat[i] = draws.uniform(static_cast<std::uint64_t>(i)) - 0.5;
    }
    values.copy_(flat.view(values.sizes()));
  }
  // The matrix gives way to its factors.
  Replacement factorize() {
    const torch::NoGradGuard no_grad;
    u = torch::empty({8, kRank}, torch::kDouble);
    v = torch::empty({kRank, 12}, torch::kDouble);
    fill("u", u);
    fill("v", v);
    u.set_requires_grad(true);
    v.set_requires_grad(true);
    weight = at::Tensor();
    return {.removed = {"weight"}, .added = {{"u", u}, {"v", v}}};
  }
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor w = weight.defined() ? weight : u.mm(v);
    return after(torch::tanh(torch::tanh(before(x)).mm(w.t())));
  }
  std::vector<at::Tensor> trained() {
    std::vector<at::Tensor> all = {before->weight, before->bias};
    if (weight.defined()) {
      all.push_back(weight);
    } else {
      all.insert(all.end(), {u, v});
    }
    all.insert(all.end(), {after->weight, after->bias});
    return all;
  }
  torch::nn::Linear before{nullptr};
  torch::nn::Linear after{nullptr};
  at::Tensor weight, u, v;
};

// All state by name; what owners have of parts is put together by `merge`.
class Shown final : public StateVisitor {
 public:
  explicit Shown(DataParallel& parallel) { parallel.visit(*this); }
  void tensor(const StateEntry& entry) override {
    if (entry.kind == StateKind::ranged) {
      parts.push_back({entry, entry.tensor.clone()});
    } else {
      whole[entry.name] = entry.tensor.clone();
    }
  }
  void counter(const std::string&, std::int64_t&) override {}
  std::map<std::string, at::Tensor> whole;
  std::vector<std::pair<StateEntry, at::Tensor>> parts;
};

// What owners have of one parameter, over all ranks.
class Owners {
 public:
  void add(const Shown& shown, const std::string& name, std::int64_t numel) {
    const std::lock_guard lock(mutex_);
    if (!values_.defined()) values_ = torch::zeros({numel}, torch::kDouble);
    for (const auto& [entry, tensor] : shown.parts) {
      if (entry.name != name) continue;
      values_.narrow(0, entry.begin, tensor.numel()).add_(tensor);
    }
  }
  const at::Tensor& values() const { return values_; }

 private:
  std::mutex mutex_;
  at::Tensor values_;
};

void train(Net& net, DataParallel& parallel, torch::optim::Optimizer& optimizer, int rank, int from,
           int steps) {
  for (int step = from; step < from + steps; ++step) {
    optimizer.zero_grad();
    const at::Tensor x =
        torch::sin(torch::arange(24, torch::kDouble).view({4, 6}) * (rank + 1) + step);
    const at::Tensor y = torch::cos(torch::arange(12, torch::kDouble).view({4, 3}) + step);
    torch::mse_loss(net.forward(x), y).backward();
    ASSERT_TRUE(parallel.finish().committed());
    optimizer.step();
  }
}

std::vector<Parameter> all_of(Net& net) {
  return parameters_of(net);
}

class Replace : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(Replace, ProjectsWhatWasNotSentAndKeepsTheRest) {
  const CompressionOptions options = parse_compression(GetParam().first, GetParam().second);
  for (const int size : {1, 3}) {
    Owners owned_before, owned_u, kept_before, kept_after;
    at::Tensor factor;
    run_ranks(size, [&](auto communicator) {
      Net net;
      DataParallel parallel(all_of(net), *communicator, options);
      torch::optim::SGD sgd(net.trained(), 0.01);
      train(net, parallel, sgd, communicator->rank(), 0, 6);
      const Shown before(parallel);
      Replacement replacement = net.factorize();
      const at::Tensor v = net.v.detach().clone();
      replacement.project = [v](const std::map<std::string, at::Tensor>& of) {
        return std::map<std::string, at::Tensor>{{"u", of.at("weight").mm(v.t())}};
      };
      const auto sentences = parallel.replace_parameters(replacement);
      ASSERT_EQ(sentences.size(), 1U);
      EXPECT_THAT(sentences[0], HasSubstr("weight gives way to u, v"));
      EXPECT_THAT(sentences[0], HasSubstr("projected"));
      const Shown after(parallel);
      EXPECT_FALSE(after.whole.contains("residual/weight"));
      const at::Tensor expected = before.whole.at("residual/weight").mm(v.t());
      EXPECT_TRUE(torch::allclose(after.whole.at("residual/u"), expected, 0, 1e-14));
      EXPECT_EQ(after.whole.at("residual/v").abs().max().item<double>(), 0);
      EXPECT_TRUE(after.whole.at("residual/before.weight")
                      .equal(before.whole.at("residual/before.weight")));
      owned_before.add(before, "owner_residual/weight", 96);
      owned_u.add(after, "owner_residual/u", 16);
      kept_before.add(before, "owner_residual/before.weight", 72);
      kept_after.add(after, "owner_residual/before.weight", 72);
      if (communicator->rank() == 0) factor = v;
      // And it goes on.
      torch::optim::SGD next(net.trained(), 0.01);
      train(net, parallel, next, communicator->rank(), 6, 6);
      parallel.check_replicas();
    });
    EXPECT_TRUE(kept_after.values().equal(kept_before.values()));
    EXPECT_TRUE(torch::allclose(
        owned_u.values(), owned_before.values().view({8, 12}).mm(factor.t()).flatten(), 0, 1e-14));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Feedbacks, Replace,
    ::testing::Values(std::pair("sign:block=16", "error_feedback"),
                      std::pair("quantize:bits=2,block=32", "error_feedback"),
                      std::pair("quantize:bits=4,block=32", "econtrol"),
                      std::pair("topk:density=0.1,block=32", "econtrol:eta=0.05,momentum=0.5"),
                      std::pair("powersgd:rank=1,min_compression_rate=1", "error_feedback")));

TEST(Replace, WithoutAProjectionSaysWhatIsDropped) {
  run_ranks(2, [](auto communicator) {
    Net net;
    DataParallel parallel(all_of(net), *communicator, parse_compression("sign:block=16", "auto"));
    torch::optim::SGD sgd(net.trained(), 0.01);
    train(net, parallel, sgd, communicator->rank(), 0, 3);
    const auto sentences = parallel.replace_parameters(net.factorize());
    ASSERT_EQ(sentences.size(), 1U);
    EXPECT_THAT(sentences[0], HasSubstr("is dropped"));
    EXPECT_EQ(Shown(parallel).whole.at("residual/u").abs().max().item<double>(), 0);
  });
}

TEST(Replace, RefusesWhatCannotBe) {
  run_ranks(2, [](auto communicator) {
    Net net;
    DataParallel parallel(all_of(net), *communicator, parse_compression("sign:block=16", "auto"));
    EXPECT_THROW(parallel.replace_parameters({}), UsageError);
    EXPECT_THROW(parallel.replace_parameters({.removed = {"weigth"}, .added = {}}), UsageError);
    {
      const auto held = parallel.accumulate();
      EXPECT_THROW(parallel.replace_parameters({.removed = {"weight"}, .added = {}}), UsageError);
    }
    const at::Tensor twice = torch::zeros({2, 2}, torch::kDouble).set_requires_grad(true);
    EXPECT_THROW(
        parallel.replace_parameters({.removed = {"weight"}, .added = {{"before.weight", twice}}}),
        UsageError);
    Replacement misnamed = net.factorize();
    misnamed.project = [](const std::map<std::string, at::Tensor>& of) {
      return std::map<std::string, at::Tensor>{{"uu", of.at("weight")}};
    };
    EXPECT_THROW(parallel.replace_parameters(misnamed), UsageError);
    Replacement misshaped = misnamed;
    misshaped.project = [](const std::map<std::string, at::Tensor>& of) {
      return std::map<std::string, at::Tensor>{{"u", of.at("weight")}};
    };
    EXPECT_THROW(parallel.replace_parameters(misshaped), UsageError);
    net.weight = net.named_parameters()["weight"];
    // Nothing has changed.
    torch::optim::SGD sgd(net.trained(), 0.01);
    train(net, parallel, sgd, communicator->rank(), 0, 2);
    net.forward(torch::ones({1, 6}, torch::kDouble)).sum().backward();
    EXPECT_THROW(parallel.replace_parameters({.removed = {"weight"}, .added = {}}), UsageError)
        << "a step is open";
    EXPECT_TRUE(parallel.finish().committed());
  });
}

SliceLayout half_of_the_rows() {
  SliceLayout part;
  part.live = Liveness::of_ranges({{0, 48}});
  return part;
}

// The run that goes on and the one that resumes have the same bits: layouts and replaced parameters
// are in the checkpoint.
TEST(Replace, ResumesBitForBitWithLayouts) {
  const std::string root = ::testing::TempDir() + "/replace_resume";
  std::filesystem::remove_all(root);
  for (const char* compressor :
       {"sign:block=16", "quantize:bits=3,block=32", "powersgd:rank=2,min_compression_rate=1"}) {
    const std::string folder = root + "/" + std::string(compressor).substr(0, 4);
    const bool ranked = std::string(compressor).starts_with("powersgd");
    const CompressionOptions options = parse_compression(compressor, "auto");
    std::vector<at::Tensor> straight;
    run_ranks(2, [&](auto communicator) {
      Net net;
      DataParallel parallel(all_of(net), *communicator, options);
      torch::optim::SGD first(net.trained(), 0.05);
      train(net, parallel, first, communicator->rank(), 0, 4);
      parallel.replace_parameters(net.factorize());
      std::vector<std::uint8_t> bits(9, 0b01101101);
      SliceLayout sparse;
      sparse.live = Liveness::of_bitmap(bits);
      SliceLayout recoded;
      if (ranked) recoded.coding.rank = 1;
      if (std::string(compressor).starts_with("quantize")) recoded.coding.bits = 5;
      parallel.relayout({{"before.weight", sparse}, {"after.weight", recoded}});
      torch::optim::SGD second(net.trained(), 0.05);
      train(net, parallel, second, communicator->rank(), 4, 4);
      ASSERT_TRUE(parallel.save(folder, 8, second).complete);
      train(net, parallel, second, communicator->rank(), 8, 5);
      if (communicator->rank() != 0) return;
      for (const auto& tensor : net.trained()) straight.push_back(tensor.detach().clone());
    });
    run_ranks(2, [&](auto communicator) {
      Net net;
      DataParallel parallel(all_of(net), *communicator, options);
      parallel.replace_parameters(net.factorize());
      torch::optim::SGD sgd(net.trained(), 0.05);
      ASSERT_EQ(parallel.load(folder, sgd), 8);
      train(net, parallel, sgd, communicator->rank(), 8, 5);
      if (communicator->rank() != 0) return;
      const auto weights = net.trained();
      for (std::size_t i = 0; i < weights.size(); ++i) {
        EXPECT_TRUE(weights[i].equal(straight[i])) << compressor << ", parameter " << i;
      }
    });
  }
  std::filesystem::remove_all(root);
}

// The layouts are set before the state is read; a checkpoint that cannot be read leaves none
// behind.
TEST(Layouts, AreThoseOfBeforeWhereACheckpointCannotBeLoaded) {
  const std::string folder = ::testing::TempDir() + "/replace_failed";
  std::filesystem::remove_all(folder);
  run_ranks(2, [&](auto communicator) {
    Net net;
    DataParallel parallel(all_of(net), *communicator, parse_compression("sign:block=16", "auto"));
    torch::optim::SGD sgd(net.trained(), 0.05);
    parallel.relayout({{"weight", half_of_the_rows()}});
    train(net, parallel, sgd, communicator->rank(), 0, 2);
    ASSERT_TRUE(parallel.save(folder, 2, sgd).complete);
  });
  run_ranks(2, [&](auto communicator) {
    // Another optimizer's residuals: a coding of another type of state.
    Net net;
    DataParallel parallel(all_of(net), *communicator,
                          parse_compression("powersgd:rank=2,min_compression_rate=1", "auto"));
    torch::optim::SGD sgd(net.trained(), 0.05);
    EXPECT_THROW(parallel.load(folder, sgd), DataError);
    const at::Tensor start = net.weight.detach().clone();
    train(net, parallel, sgd, communicator->rank(), 0, 2);
    const at::Tensor moved = (net.weight - start).abs().sum(1).detach();
    EXPECT_GT(moved.min().item<double>(), 0) << "a row rests that no layout names";
  });
  std::filesystem::remove_all(folder);
}

TEST(Layouts, OfAttachedModelsLeaveOutWhatIsNotLive) {
  run_ranks(2, [](auto communicator) {
    Net net;
    DataParallel parallel(all_of(net), *communicator, parse_compression("none", "auto"));
    torch::optim::SGD sgd(net.trained(), 0.05);
    const at::Tensor start = net.weight.detach().clone();
    parallel.relayout({{"weight", half_of_the_rows()}});
    train(net, parallel, sgd, communicator->rank(), 0, 3);
    EXPECT_FALSE(net.weight.narrow(0, 0, 4).equal(start.narrow(0, 0, 4)));
    EXPECT_TRUE(net.weight.narrow(0, 4, 4).equal(start.narrow(0, 4, 4)));
    EXPECT_THROW(parallel.relayout({{"wieght", {}}}), UsageError);
    SliceLayout recoded;
    recoded.coding.bits = 3;
    EXPECT_THROW(parallel.relayout({{"weight", recoded}}), UsageError);
  });
}

TEST(Layouts, ThatDifferBetweenRanksEndTheStepOnAllOfThem) {
  run_ranks(3, [](auto communicator) {
    Net net;
    DataParallel parallel(all_of(net), *communicator, parse_compression("sign:block=16", "auto"));
    if (communicator->rank() == 2) parallel.relayout({{"weight", half_of_the_rows()}});
    net.forward(torch::ones({1, 6}, torch::kDouble)).sum().backward();
    try {
      parallel.finish();
      FAIL() << "ranks with different layouts went on";
    } catch (const RanksDisagree& error) {
      EXPECT_THAT(error.what(), HasSubstr("weight"));
      EXPECT_THAT(error.what(), HasSubstr("rank 2"));
    }
  });
}

}  // namespace
}  // namespace thinwire
