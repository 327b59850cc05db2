// `thinwire advise`.
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "collectives/agreement.h"
#include "collectives/base/error.h"
#include "examples/models/initialize.h"
#include "launch/advise/advice.h"
#include "launch/advise/profile.h"
#include "launch/commands.h"
#include "launch/cores.h"
#include "launch/device.h"
#include "launch/gpu.h"
#include "launch/job.h"
#include "launch/output.h"
#include "launch/version.h"
#include "optimizers/factory.h"
#include "runtime/data/load.h"
#include "runtime/report/pay_off.h"
#include "runtime/trainer/compression.h"

namespace thinwire {
namespace {

const std::string kNone = "none";
// Compressors take turns, so that a slow moment of the machine is not held against one of them.
constexpr int kRounds = 3;

// The training's options with another compressor. What is said of feedback and exchange is meant
// for the one that the training names.
TrainOptions with_compressor(TrainOptions options, const std::string& compressor) {
  if (compressor != options.compressor) {
    options.feedback = "auto";
    options.exchange = "auto";
  }
  options.compressor = compressor;
  options.start_iter = 0;  // what counts is the time after the start
  options.resume.clear();
  options.trace.clear();
  return options;
}

// Those that are compared; "none" is one of them.
std::vector<std::string> compressors_of(const AdviseOptions& options) {
  std::vector<std::string> compressors = split_compressors(options.compressors);
  if (std::find(compressors.begin(), compressors.end(), kNone) == compressors.end()) {
    compressors.insert(compressors.begin(), kNone);
  }
  return compressors;
}

std::size_t index_of_none(const std::vector<Choice>& choices) {
  const auto found = std::find_if(choices.begin(), choices.end(),
                                  [](const Choice& choice) { return choice.compressor == kNone; });
  return static_cast<std::size_t>(found - choices.begin());
}

// Collective: of the slowest rank.
double slowest(Communicator& communicator, double seconds) {
  const auto nanoseconds = static_cast<std::int64_t>(1e9 * seconds);
  return 1e-9 * static_cast<double>(all_reduce_max(communicator, {nanoseconds}).front());
}

Choice choose(Communicator& communicator, const std::string& compressor, const Profile& profile,
              const Link& link) {
  const auto median_of = [&](const std::function<double(const Profile::Step&)>& value) {
    std::vector<double> values;
    for (const Profile::Step& step : profile.steps) values.push_back(value(step));
    return slowest(communicator, median(values));
  };
  using Step = Profile::Step;
  Choice choice;
  choice.compressor = compressor;
  choice.wire_bytes = std::round(median_of([](const Step& step) { return step.wire_bytes; }));
  choice.arithmetic_seconds = median_of([](const Step& step) { return step.arithmetic_seconds; });
  choice.network_seconds =
      median_of([&](const Step& step) { return communication(step.timeline, link); });
  choice.local_seconds = median_of([](const Step& step) { return step.seconds; });
  choice.predicted_seconds =
      median_of([&](const Step& step) { return predict_step(step.timeline, link); });
  return choice;
}

std::string describe(const Link& link) {
  std::string text;
  for (const auto& [operation, curve] : link.curves()) {
    text += fmt::format("{}{} {:.2f} ms and {}", text.empty() ? "link: " : ", ", operation,
                        1e3 * curve.latency(), format_bandwidth(curve.bandwidth()));
  }
  return text + fmt::format(", {:.2f} ms less after a rest\n", 1e3 * link.burst());
}

nlohmann::ordered_json as_json(const Link& link) {
  nlohmann::ordered_json json;
  for (const auto& [operation, curve] : link.curves()) {
    auto& points = json[operation] = nlohmann::ordered_json::array();
    for (const LinkPoint& point : curve.points()) {
      points.push_back({{"bytes", point.bytes}, {"seconds", point.seconds}});
    }
  }
  return json;
}

void write_json(const AdviseOptions& options, const TrainRequest& training, int ranks,
                const Link& link, const std::vector<Choice>& choices) {
  nlohmann::ordered_json json{{"version", kVersion},
                              {"ranks", ranks},
                              {"model", training.model},
                              {"data", training.data},
                              {"batch_size", training.batch_size},
                              {"link", as_json(link)},
                              {"burst_seconds", link.burst()}};
  auto& rows = json["compressors"] = nlohmann::ordered_json::array();
  for (const Choice& choice : choices) {
    const auto bandwidth = break_even(choice, choices[index_of_none(choices)]);
    // Bits per second, or a word.
    nlohmann::ordered_json pays_below = "never";
    if (bandwidth) pays_below = *bandwidth;
    if (bandwidth && std::isinf(*bandwidth)) pays_below = "any rate";
    rows.push_back({{"compressor", choice.compressor},
                    {"wire_bytes", choice.wire_bytes},
                    {"arithmetic_seconds", choice.arithmetic_seconds},
                    {"network_seconds", choice.network_seconds},
                    {"local_seconds", choice.local_seconds},
                    {"step_seconds", choice.predicted_seconds},
                    {"pays_below", pays_below}});
  }
  json["best"] = choices[best_of(choices)].compressor;
  std::ofstream file(options.json);
  file << json.dump(2) << '\n';
  file.flush();
  if (!file) {
    throw Error(ExitCode::cannot_write,
                fmt::format("cannot write '{}'; check the folder and its space", options.json));
  }
}

// What the largest exchange of a step may send.
std::int64_t dense_bytes(const torch::nn::Module& module, int ranks) {
  const auto bytes = static_cast<double>(4 * values_of(module));
  return static_cast<std::int64_t>(ring_bytes(bytes, ranks));
}

void advise_rank(std::unique_ptr<Communicator> communicator, const CommandLine& line,
                 const DataSplit& data, const MakeModel& make) {
  const TrainRequest& training = line.train;
  const auto configuration = as_map(training);
  Facts facts(configuration.begin(), configuration.end());
  facts["version"] = kVersion;
  facts["compressors"] = line.advise.compressors;
  facts["repeats"] = std::to_string(line.advise.repeats);
  require_same_everywhere(*communicator, facts, kStartedDifferently);

  const auto fresh_model = [&] {
    Model model = make(training.model, *data.train);
    initialize_parameters(*model.module, training.seed);
    return model;
  };
  const bool speaks = communicator->rank() == 0;
  const int ranks = communicator->size();
  const Link link =
      measure_link(*communicator, dense_bytes(*fresh_model().module, ranks), line.advise.repeats);
  if (speaks) print(describe(link));
  const std::vector<std::string> compressors = compressors_of(line.advise);
  const auto team = make_team(*communicator, line.train.exchange_threads, at::get_num_threads());
  if (speaks && team) print(fmt::format("codecs and update on {} threads a rank\n", team->size()));
  const ChosenKernels chosen = choose_kernels(line.train.kernels, values_of(*fresh_model().module));
  std::vector<Profile> profiles(compressors.size());
  for (int round = 0; round < kRounds; ++round) {
    for (std::size_t i = 0; i < compressors.size(); ++i) {
      const Profile profile = measure_profile(*communicator, fresh_model(), data,
                                              with_compressor(training, compressors[i]),
                                              line.advise.repeats, team, chosen.kernels);
      profiles[i].steps.insert(profiles[i].steps.end(), profile.steps.begin(), profile.steps.end());
    }
  }
  std::vector<Choice> choices;
  for (std::size_t i = 0; i < compressors.size(); ++i) {
    choices.push_back(choose(*communicator, compressors[i], profiles[i], link));
  }
  if (speaks) {
    print(describe(choices, index_of_none(choices)));
    if (!line.advise.json.empty()) write_json(line.advise, training, ranks, link, choices);
  }
  communicator->barrier()->wait();
}

// Everything that can be known to be wrong before ranks meet.
void validate(const CommandLine& line, const JobEnvironment& environment) {
  if (std::max<std::int64_t>(line.train.ranks, environment.world_size) < 2) {
    throw UsageError(
        "advise: one rank sends nothing; start it as the training is started, with a launcher or "
        "--ranks N");
  }
  const bool would_use_device =
      line.train.device == "cuda" || (line.train.device == "auto" && cuda_device_count() > 0);
  if (would_use_device) {
    throw UsageError("advise measures training on CPUs only; give --device cpu");
  }
  if (gradient_codec_of(line.train.optimizer)) {
    throw UsageError(
        fmt::format("advise measures a run's first steps, in which {} exchanges gradients of its "
                    "own coding, whatever the compressor; give --optimizer sgd, whose exchange "
                    "takes as long as that of its momentum",
                    line.train.optimizer));
  }
  for (const std::string& compressor : compressors_of(line.advise)) {
    compression_of(with_compressor(line.train, compressor));
  }
}

}  // namespace

int run_advise(const CommandLine& line, const JobEnvironment& environment, const MakeModel& make) {
  validate(line, environment);
  const Job job = make_job(environment, {.backend = line.train.backend,
                                         .ranks = line.train.ranks,
                                         .timeout = std::chrono::seconds(line.train.timeout),
                                         .name = {line.train.job_id, ""}});
  share_cores(environment, line.train.ranks, line.train.threads);
  const DataSplit data = load_data(line.train.data);
  if (environment.rank == 0) print(describe(job) + "\n");
  return run_job(job, [&](std::unique_ptr<Communicator> communicator) {
    advise_rank(std::move(communicator), line, data, make);
    return 0;
  });
}

}  // namespace thinwire
