// Trains a small network with torch::optim through DataParallel, ranks as threads, and prints a
// hash of its parameters: what `thinwire train` cannot do, such as freezing parameters. bits.py
// compiles this file in the tree of before as well, so it uses only what is public in both.
//
//   attached ranks=3 compressor=sign freeze=true       last line: 16 hex digits
#include <torch/torch.h>

#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "collectives/base/hash.h"
#include "collectives/compression/parse.h"
#include "collectives/threads/thread_communicator.h"
#include "runtime/data_parallel.h"

namespace {

struct Options {
  int ranks = 2;
  std::string compressor = "none";
  std::string feedback = "auto";
  std::string exchange = "auto";
  std::int64_t start_iter = 0;
  std::string optimizer = "sgd";
  double clip = 0;             // largest norm of all gradients; 0: no clipping
  int accumulate = 1;          // micro-batches per step
  std::int64_t bucket = 8192;  // bytes, so that there are several
  std::string dtype = "float";
  bool freeze = false;    // a layer until kThaw, and another from kFreezeAgain to kThawAgain
  bool rollback = false;  // one rank's loss is NaN in one step, infinite in another
};

constexpr int kSteps = 24;
constexpr int kThaw = 6;
constexpr int kFreezeAgain = 9;
constexpr int kThawAgain = 15;
constexpr int kNan = 5;
constexpr int kInfinite = 12;

Options parse(int argc, char** argv) {
  std::map<std::string, std::string> given;
  for (int i = 1; i < argc; ++i) {
    const std::string text = argv[i];
    const std::size_t equals = text.find('=');
    if (equals == std::string::npos) throw std::runtime_error(text + " is not KEY=VALUE");
    given[text.substr(0, equals)] = text.substr(equals + 1);
  }
  const auto take = [&](const char* key, std::string standard) {
    const auto node = given.extract(key);
    return node.empty() ? standard : node.mapped();
  };
  Options options;
  options.ranks = std::stoi(take("ranks", "2"));
  options.compressor = take("compressor", options.compressor);
  options.feedback = take("feedback", options.feedback);
  options.exchange = take("exchange", options.exchange);
  options.start_iter = std::stoll(take("start_iter", "0"));
  options.optimizer = take("optimizer", options.optimizer);
  options.clip = std::stod(take("clip", "0"));
  options.accumulate = std::stoi(take("accumulate", "1"));
  options.bucket = std::stoll(take("bucket", "8192"));
  options.dtype = take("dtype", options.dtype);
  options.freeze = take("freeze", "false") == "true";
  options.rollback = take("rollback", "false") == "true";
  if (!given.empty()) throw std::runtime_error("no option '" + given.begin()->first + "'");
  return options;
}

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Options& options,
                                                        std::vector<at::Tensor> parameters) {
  using namespace torch::optim;
  if (options.optimizer == "sgd") {
    return std::make_unique<SGD>(std::move(parameters), SGDOptions(0.05).momentum(0.5));
  }
  if (options.optimizer == "adam") {
    return std::make_unique<Adam>(std::move(parameters), AdamOptions(0.002));
  }
  if (options.optimizer == "adamw") {
    return std::make_unique<AdamW>(std::move(parameters), AdamWOptions(0.002).weight_decay(0.01));
  }
  throw std::runtime_error("no optimizer " + options.optimizer);
}

// Ranks are threads and share torch's generator, so nothing here is drawn from it.
at::Tensor waves(at::IntArrayRef shape, double frequency, at::ScalarType dtype) {
  const at::Tensor places = torch::arange(c10::multiply_integers(shape), at::kDouble);
  return torch::sin(places * frequency).view(shape).to(dtype);
}

void set_frozen(torch::nn::Module& layer, bool frozen) {
  for (at::Tensor& parameter : layer.parameters()) parameter.set_requires_grad(!frozen);
}

std::uint64_t train(thinwire::Communicator& ranks, const Options& options) {
  const at::ScalarType dtype = options.dtype == "double" ? at::kDouble : at::kFloat;
  torch::nn::Linear first(20, 48);
  torch::nn::Linear middle(48, 48);
  torch::nn::Sequential model(first, torch::nn::BatchNorm1d(48), torch::nn::Tanh(), middle,
                              torch::nn::Tanh(), torch::nn::Linear(48, 10));
  model->to(dtype);
  {
    const torch::NoGradGuard no_grad;
    double frequency = 1;
    for (at::Tensor& parameter : model->parameters()) {
      parameter.copy_(waves(parameter.sizes(), frequency += 0.37, dtype) * 0.2);
    }
  }
  if (options.freeze) set_frozen(*first, true);

  auto compression =
      thinwire::parse_compression(options.compressor, options.feedback, options.exchange);
  compression.start_iter = options.start_iter;
  thinwire::DataParallel parallel(
      *model, ranks, compression,
      {.bucket_bytes = options.bucket, .first_bucket_bytes = options.bucket});
  const auto optimizer = make_optimizer(options, model->parameters());

  const bool is_last = ranks.rank() == ranks.size() - 1;
  for (int step = 0; step < kSteps; ++step) {
    if (options.freeze && step == kThaw) set_frozen(*first, false);
    if (options.freeze && step == kFreezeAgain) set_frozen(*middle, true);
    if (options.freeze && step == kThawAgain) set_frozen(*middle, false);
    optimizer->zero_grad();
    const auto backward = [&](int part) {
      const double frequency = 1 + ranks.rank() + 0.1 * step + 0.01 * part;
      const at::Tensor input = waves({32, 20}, frequency, dtype);
      const at::Tensor target = torch::tanh(input.narrow(1, 0, 10) + input.narrow(1, 10, 10));
      at::Tensor loss = torch::mse_loss(model->forward(input), target) / options.accumulate;
      if (options.rollback && is_last && step == kNan) {
        loss = loss * std::numeric_limits<double>::quiet_NaN();
      }
      if (options.rollback && is_last && step == kInfinite) {
        loss = loss * std::numeric_limits<double>::infinity();
      }
      loss.backward();
    };
    for (int part = 1; part < options.accumulate; ++part) {
      const auto hold = parallel.accumulate();
      backward(part);
    }
    backward(0);
    parallel.finish();
    if (options.clip > 0) torch::nn::utils::clip_grad_norm_(model->parameters(), options.clip);
    optimizer->step();
  }

  std::uint64_t hash = 0;
  for (const at::Tensor& parameter : model->parameters()) {
    const at::Tensor values = parameter.detach().contiguous();
    if (!values.isfinite().all().item<bool>()) throw std::runtime_error("it diverged");
    hash = thinwire::hash64(values.data_ptr(), values.nbytes(), hash);
  }
  return hash;
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse(argc, argv);
  at::set_num_threads(1);
  std::vector<std::uint64_t> hashes(static_cast<std::size_t>(options.ranks));
  thinwire::run_ranks(options.ranks, [&](std::unique_ptr<thinwire::Communicator> ranks) {
    hashes[static_cast<std::size_t>(ranks->rank())] = train(*ranks, options);
  });
  for (const std::uint64_t hash : hashes) {
    if (hash != hashes[0]) throw std::runtime_error("ranks ended with different parameters");
  }
  std::puts(thinwire::hex64(hashes[0]).c_str());
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
