// `thinwire train`.
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <fstream>
#include <iostream>
#include <optional>
#include <thread>

#include "collectives/threads/thread_communicator.h"
#include "examples/models/initialize.h"
#include "examples/models/models.h"
#include "launch/agreement.h"
#include "launch/commands.h"
#include "launch/exit.h"
#include "launch/output_folder.h"
#include "launch/progress.h"
#include "launch/signals.h"
#include "launch/version.h"
#include "optimizers/factory.h"
#include "optimizers/schedule.h"
#include "runtime/base/error.h"
#include "runtime/base/hash.h"
#include "runtime/data/load.h"
#include "runtime/data_parallel.h"
#include "runtime/telemetry/metrics.h"
#include "runtime/telemetry/tensorboard.h"
#include "runtime/trainer/precision.h"
#include "runtime/trainer/trainer.h"

#if THINWIRE_HAVE_MPI
#include "collectives/mpi/mpi_communicator.h"
#endif

namespace thinwire {
namespace {

// What rank 0 shows and writes.
class Console final : public TrainerObserver {
 public:
  explicit Console(Progress::Mode mode) : progress_(std::cout, mode, Progress::columns_of(1)) {}

  // Once it is known what the run resumes from.
  void open_metrics(const TrainOptions& options, std::int64_t resumed_at) {
    metrics_.emplace(options.output + "/metrics.jsonl", resumed_at);
    tensorboard_.emplace(options.output + "/tensorboard", resumed_at);
    warn();
  }

  void on_line(const std::string& line) override { progress_.line(line); }
  void on_step(const StepReport& report) override {
    metrics_->write(report);
    tensorboard_->write(report);
    warn();
    progress_.report({.step = report.step,
                      .total_steps = report.total_steps,
                      .epoch = report.epoch,
                      .loss = report.loss,
                      .samples_per_second = report.samples_per_second,
                      .seconds_left = report.seconds_left,
                      .bytes_per_step = report.bytes_wire,
                      .ratio = ratio(report)});
  }
  void on_evaluation(std::int64_t step, const Evaluation& evaluation) override {
    tensorboard_->write(step, evaluation);
    warn();
  }
  void on_end(const EndReport& report) {
    metrics_->write(report);
    warn();
    progress_.line(
        fmt::format("{}: test accuracy {:.2f} %, test loss {:.4f}, {:.0f} samples/s, {:.0f} bytes "
                    "a step ({:.1f} times fewer "
                    "than dense), {} steps skipped, parameters {}",
                    report.stopped ? "stopped on request" : "done", 100 * report.test_accuracy,
                    report.test_loss, report.last.samples_per_second, report.last.bytes_wire,
                    ratio(report.last), report.last.skipped, report.parameters_hash));
  }

 private:
  static double ratio(const StepReport& report) {
    return report.bytes_wire > 0 ? report.bytes_dense / report.bytes_wire : 1;
  }
  void warn() {
    for (const std::string& warning : {metrics_->take_warning(), tensorboard_->take_warning()}) {
      if (!warning.empty()) progress_.line("warning: " + warning);
    }
  }

  std::optional<MetricsFile> metrics_;
  std::optional<TensorBoardFile> tensorboard_;
  Progress progress_;
};

class Silence final : public TrainerObserver {
 public:
  void on_line(const std::string&) override {}
  void on_step(const StepReport&) override {}
};

std::string layout_of(const std::vector<Parameter>& parameters) {
  std::string text;
  for (const auto& [name, tensor] : parameters) {
    text += fmt::format("{} {} [", name, toString(tensor.scalar_type()));
    for (const auto extent : tensor.sizes()) text += fmt::format("{} ", extent);
    text += "]\n";
  }
  return text;
}

std::string fingerprint(const DataSplit& data) {
  return fmt::format("{} training samples {}, {} test samples {}", data.train->size(),
                     hex64(data.train->fingerprint()), data.test->size(),
                     hex64(data.test->fingerprint()));
}

// What a user should know of the options that he chose; empty if there is nothing to say.
std::string advice(const TrainOptions& options) {
  const bool dense = parse_compression(options.compressor, options.feedback).codec.index() == 0;
  if (dense || options.momentum < 0.5 || !options.optimizer.starts_with("sgd")) return {};
  return fmt::format(
      "note: momentum {} behind compressed gradients needs a smaller learning rate than without "
      "compression; with --momentum 0 the same rate per step works",
      options.momentum);
}

// Everything that can be known to be wrong before ranks meet.
void validate(const TrainOptions& options, const DataSplit& data) {
  parse_compression(options.compressor, options.feedback);
  parse_schedule(options.lr_schedule, options.lr, 1);
  make_optimizer(options.optimizer, {options.momentum, options.weight_decay}, {});
  make_model(options.model, *data.train);
  parse_precision(options.precision);
  if (!options.trace.empty() && !std::ofstream(options.trace, std::ios::app)) {
    throw IoError(fmt::format("cannot write the trace to '{}'; check the folder", options.trace));
  }
}

// One rank's run. Returns the exit code.
int train_rank(std::unique_ptr<Communicator> transport, const CommandLine& line,
               const DataSplit& data, const SignalWatcher& signals, Progress::Mode mode) {
  const TrainOptions& options = line.train;
  const int rank = transport->rank();
  Trace trace(rank);
  const auto meter = std::make_shared<Meter>([&](const OperationRecord& record) {
    if (!options.trace.empty()) trace.span("wire", record.name, record.start, record.end);
  });
  const auto communicator = make_metered(std::move(transport), meter);

  Model model = make_model(options.model, *data.train);
  initialize_parameters(*model.module, options.seed);

  const auto configuration = as_map(options, line.train.ranks);
  Facts facts(configuration.begin(), configuration.end());
  facts["version"] = kVersion;
  facts["parameters"] = layout_of(parameters_of(*model.module));
  facts["dataset"] = fingerprint(data);
  require_same_everywhere(*communicator, facts);

  if (rank == 0) make_output_folder(options);
  communicator->barrier()->wait();

  std::unique_ptr<Console> console;
  if (rank == 0) console = std::make_unique<Console>(mode);
  Silence silence;
  TrainerObserver& observer = console ? static_cast<TrainerObserver&>(*console) : silence;

  PosixFileSystem files;
  Trainer trainer({.model = model,
                   .data = data,
                   .communicator = *communicator,
                   .meter = *meter,
                   .files = files,
                   .observer = observer,
                   .stop_requested = [&] { return signals.requested(); },
                   .trace = options.trace.empty() ? nullptr : &trace,
                   .info = configuration},
                  options);
  std::int64_t values = 0;
  for (const auto& parameter : trainer.parameters()) values += parameter.tensor.numel();
  observer.on_line(fmt::format("{} ranks, {} with {} parameters on {}, {} samples a step",
                               communicator->size(), options.model, values, options.data,
                               communicator->size() * options.batch_size * options.accumulate));
  trainer.resume();
  communicator->barrier()->wait();  // everybody has read what it resumes from
  if (rank == 0) {
    const OutputHistory history = set_aside_earlier_runs(options);
    if (!history.moved.empty()) observer.on_line(history.moved);
    console->open_metrics(options, history.continued ? trainer.attempted_steps() : 0);
  }
  for (const auto& way : trainer.describe_compression()) observer.on_line(way);
  if (!advice(options).empty()) observer.on_line(advice(options));

  const EndReport end = trainer.run();
  if (console) console->on_end(end);
  if (!options.trace.empty()) write_trace(trace, *communicator, options.trace);
  communicator->barrier()->wait();
  if (!end.stopped) return static_cast<int>(ExitCode::done);
  return static_cast<int>(end.checkpoint_is_current ? ExitCode::stopped_with_checkpoint
                                                    : ExitCode::cannot_write);
}

void share_cores(std::int64_t ranks) {
  const auto cores = static_cast<std::int64_t>(std::thread::hardware_concurrency());
  at::set_num_threads(static_cast<int>(std::max<std::int64_t>(1, cores / ranks)));
}

#if THINWIRE_HAVE_MPI
int train_over_mpi(const CommandLine& line, const JobEnvironment& environment,
                   const DataSplit& data, const SignalWatcher& signals) {
  MpiEnvironment mpi;
  try {
    auto world = make_mpi_communicator(MPI_COMM_WORLD,
                                       {.timeout = std::chrono::seconds(line.train.timeout)});
    // Open MPI gives its ranks a terminal of its own, wherever its output goes.
    return train_rank(std::move(world), line, data, signals, Progress::Mode::lines);
  } catch (const AgreedError& error) {
    // They end together, and one of them says why.
    if (environment.rank == 0) report(error, std::nullopt);
    return exit_code(error);
  } catch (const std::exception& error) {
    const int code = report(error, environment.rank);
    // A rank that failed on its own tells its peers before it says why itself: let it come first.
    if (dynamic_cast<const PeerLost*>(&error)) std::this_thread::sleep_for(std::chrono::seconds(1));
    // The others may be waiting for this rank.
    MpiEnvironment::abort_job(code);
  }
}
#else
int train_over_mpi(const CommandLine&, const JobEnvironment&, const DataSplit&,
                   const SignalWatcher&) {
  throw UsageError(
      "this thinwire was built without MPI, but mpirun started it; rebuild with -DTHINWIRE_MPI=ON, "
      "or run it alone with --ranks N");
}
#endif

}  // namespace

int run_train(const TrainOptions& options, const CommandLine& line,
              const JobEnvironment& environment) {
  const SignalWatcher signals;  // before any other thread
  share_cores(std::max<std::int64_t>(line.train.ranks, environment.local_size));
  const DataSplit data = load_data(options.data);
  validate(options, data);
  const bool alone_with_threads = environment.world_size == 1 && line.train.ranks > 1;
  if (environment.launcher == JobEnvironment::Launcher::mpirun && !alone_with_threads) {
    return train_over_mpi(line, environment, data, signals);
  }

  std::atomic<int> code{0};
  run_ranks(static_cast<int>(line.train.ranks),
            [&](std::unique_ptr<Communicator> communicator) {
              const int rank_code =
                  train_rank(std::move(communicator), line, data, signals, Progress::mode_for(1));
              if (rank_code != 0) code = rank_code;
            },
            {.timeout = std::chrono::seconds(options.timeout), .link = {}});
  return code;
}

}  // namespace thinwire
