// `thinwire train`.
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>

#include "collectives/agreement.h"
#include "collectives/base/error.h"
#include "collectives/base/hash.h"
#include "examples/models/initialize.h"
#include "examples/models/models.h"
#include "launch/commands.h"
#include "launch/cores.h"
#include "launch/device.h"
#include "launch/exit.h"
#include "launch/gpu.h"
#include "launch/held_folder.h"
#include "launch/job.h"
#include "launch/output.h"
#include "launch/output_folder.h"
#include "launch/owned_files.h"
#include "launch/progress.h"
#include "launch/rank_watch.h"
#include "launch/signals.h"
#include "launch/version.h"
#include "optimizers/factory.h"
#include "optimizers/schedule.h"
#include "runtime/data/load.h"
#include "runtime/data/partition.h"
#include "runtime/model/buffers.h"
#include "runtime/report/pay_off.h"
#include "runtime/telemetry/metrics.h"
#include "runtime/telemetry/tensorboard.h"
#include "runtime/trainer/compression.h"
#include "runtime/trainer/precision.h"
#include "runtime/trainer/trainer.h"

namespace thinwire {
namespace {

// Where rank 0 shows what it does.
struct Screen {
  RunOutput& output;
  Progress::Mode mode;
};

// What rank 0 shows and writes.
class Console final : public TrainerObserver {
 public:
  explicit Console(const Screen& screen)
      : progress_([&output = screen.output](const std::string& text) { output.write(text); },
                  screen.mode, Progress::columns_of(1)) {}

  // Once it is known what the run resumes from.
  void open_metrics(const TrainOptions& options, std::int64_t resumed_at, RunLock& lock) {
    lock_ = &lock;
    const auto require_mine = [&lock] { lock.require_mine(); };
    metrics_.emplace(options.output + "/metrics.jsonl", resumed_at, require_mine);
    tensorboard_.emplace(options.output + "/tensorboard", resumed_at, require_mine);
    warn();
  }

  void on_line(const std::string& line) override { progress_.line(line); }
  void on_rank_warning(int rank, const std::string& text) override {
    progress_.line(fmt::format("warning: rank {}: {}", rank, text));
  }
  void on_step(const StepReport& report) override {
    lock_->require_mine();
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
    lock_->require_mine();
    tensorboard_->write(step, evaluation);
    warn();
  }
  void on_end(const EndReport& report) {
    lock_->require_mine();
    metrics_->write(report);
    warn();
    for (const std::string& line : pay_off(report.last)) progress_.line(line);
    progress_.line(
        fmt::format("{}: test accuracy {:.2f} %, test loss {:.4f}, {:.0f} samples/s, {:.0f} bytes "
                    "a step ({:.1f} times fewer "
                    "than dense), {} steps skipped, parameters {}",
                    outcome(report), 100 * report.test_accuracy, report.test_loss,
                    report.last.samples_per_second, report.last.bytes_wire, ratio(report.last),
                    report.last.skipped, report.parameters_hash));
  }

 private:
  static double ratio(const StepReport& report) {
    return report.bytes_wire > 0 ? report.bytes_dense / report.bytes_wire : 1;
  }
  static const char* outcome(const EndReport& report) {
    if (!report.checkpoint_is_current) return "ended without its last checkpoint";
    return report.stopped ? "stopped on request" : "done";
  }
  void warn() {
    for (const std::string& warning : {metrics_->take_warning(), tensorboard_->take_warning()}) {
      if (!warning.empty()) progress_.line("warning: " + warning);
    }
  }

  RunLock* lock_ = nullptr;  // of the folder of these two
  std::optional<MetricsFile> metrics_;
  std::optional<TensorBoardFile> tensorboard_;
  Progress progress_;
};

// Of a rank that says only what it alone knows.
class Silence final : public TrainerObserver {
 public:
  void on_line(const std::string&) override {}
  void on_step(const StepReport&) override {}
  void on_rank_warning(int rank, const std::string& text) override {
    std::fputs(fmt::format("thinwire: rank {}: warning: {}\n", rank, text).c_str(), stderr);
  }
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

// Everything that can be known to be wrong before ranks meet.
void validate(const TrainOptions& options, const DataSplit& data, std::int64_t world_size) {
  compression_of(options);
  parse_schedule(options.lr_schedule, options.lr, 1);
  make_optimizer(options.optimizer, {options.momentum, options.weight_decay}, {});
  make_model(options.model, *data.train);
  parse_precision(options.precision);
  const PartitionOptions partition = parse_partition(options.partition);
  if (const auto* by_label = std::get_if<ByLabel>(&partition)) {
    LabelPartition(*data.train, *by_label, world_size, 0);
  }
  if (!options.trace.empty() && !std::ofstream(options.trace, std::ios::app)) {
    throw IoError(fmt::format("cannot write the trace to '{}'; check the folder", options.trace));
  }
}

// Collective: whether some rank was asked to stop.
bool agree_to_stop(Communicator& communicator, const SignalWatcher& signals) {
  return all_reduce_max(communicator, {signals.requested() ? 1 : 0}).front() != 0;
}

// Ends a run that was asked to stop before it took a step. `have` says what it has of checkpoints.
int stop_before_the_first_step(int rank, RunOutput& output, const std::string& have) {
  if (rank == 0) {
    output.write(fmt::format(
        "stopped on request before the first step: {}; the same command starts it again\n", have));
  }
  return static_cast<int>(ExitCode::stopped_with_checkpoint);
}

// Before it is known what a run resumes from.
std::string checkpoints_so_far(const TrainOptions& options) {
  return options.resume.empty() ? "no checkpoint yet" : "no new checkpoint";
}

// What a rank's run is watched through.
struct Instruments {
  Trace& trace;
  FlightRecorder& recorder;
  const std::shared_ptr<Meter>& meter;
  HeldFolder& held;  // the output folder, once it was taken
};

// Says what happened to the run's lock, and throws where it is another run's.
void look_after(RunLock* lock, TrainerObserver& observer) {
  if (lock == nullptr) return;
  lock->require_mine();
  const std::string warning = lock->take_warning();
  if (!warning.empty()) observer.on_line("warning: " + warning);
}

SharePolicy share_policy(const TrainRequest& request) {
  return request.share_device ? SharePolicy::share : SharePolicy::refuse;
}

// Which device rank `rank` of this process computes on.
Device choose_rank_device(const TrainRequest& request, const JobEnvironment& environment,
                          int rank) {
  const VisibleDevices visible{cuda_device_count(), environment.devices_limited};
  const auto threads = static_cast<int>(request.ranks);
  try {
    return choose_device(request.device, threads > 1 ? thread_rank(rank, threads) : environment,
                         visible, share_policy(request));
  } catch (const UsageError& error) {
    // Of this host, unlike what is wrong with the arguments: each rank says its own.
    throw Error(ExitCode::usage, error.what());
  }
}

// One rank's run. Returns the exit code.
int train_watched(const std::unique_ptr<Communicator>& communicator, const CommandLine& line,
                  const DataSplit& data, const MakeModel& make, const SignalWatcher& signals,
                  const Screen& screen, GpuRank* gpu, const Instruments& instruments) {
  const TrainOptions& options = line.train;
  const int rank = communicator->rank();
  Trace& trace = instruments.trace;
  const auto& meter = instruments.meter;

  Model model = make(options.model, *data.train);
  initialize_parameters(*model.module, options.seed);
  if (gpu != nullptr) move_to(*model.module, gpu->device());

  if (agree_to_stop(*communicator, signals)) {
    return stop_before_the_first_step(rank, screen.output, checkpoints_so_far(options));
  }

  const auto configuration = as_map(line.train);
  Facts facts(configuration.begin(), configuration.end());
  facts["version"] = kVersion;
  facts["parameters"] = layout_of(parameters_of(*model.module));
  facts["dataset"] = fingerprint(data);
  require_same_everywhere(*communicator, facts, kStartedDifferently);

  std::unique_ptr<Console> console;
  if (rank == 0) console = std::make_unique<Console>(screen);
  Silence silence;
  TrainerObserver& observer = console ? static_cast<TrainerObserver&>(*console) : silence;

  instruments.held = take_run_lock(*communicator, options.output, system_lock_parts(),
                                   {.say = [&](const std::string& text) { observer.on_line(text); },
                                    .stop_requested = [&] { return signals.requested(); },
                                    .have = checkpoints_so_far(options)});
  RunLock* const lock = instruments.held.lock.get();

  OwnedFiles files(lock);
  const auto team =
      gpu != nullptr ? nullptr
                     : make_team(*communicator, line.train.exchange_threads, at::get_num_threads());
  const ChosenKernels chosen =
      choose_kernels(line.train.kernels, gpu != nullptr ? 0 : values_of(*model.module));
  const TrainerDevice host = host_device(*communicator, team, chosen.kernels);
  Trainer trainer({.model = model,
                   .data = data,
                   .communicator = *communicator,
                   .meter = *meter,
                   .files = files,
                   .observer = observer,
                   .stop_requested =
                       [&] {
                         look_after(lock, observer);
                         return signals.requested();
                       },
                   .device = gpu != nullptr ? &gpu->trainer_device() : &host,
                   .trace = options.trace.empty() ? nullptr : &trace,
                   .recorder = &instruments.recorder,
                   .info = configuration},
                  options);
  const std::int64_t values = values_of(*model.module);
  observer.on_line(fmt::format("{} ranks, {} with {} parameters on {}, {} samples a step",
                               communicator->size(), options.model, values, options.data,
                               communicator->size() * options.batch_size * options.accumulate));
  if (gpu != nullptr) observer.on_line("gradients over " + gpu->describe());
  if (team) observer.on_line(fmt::format("codecs and update on {} threads a rank", team->size()));
  const Resumption resumption = trainer.resume();
  // Also: everybody has read what it resumes from.
  if (agree_to_stop(*communicator, signals)) {
    const auto& from = trainer.last_checkpoint();
    return stop_before_the_first_step(
        rank, screen.output, from ? "no checkpoint newer than " + *from : "no checkpoint yet");
  }
  rank_zero_says(*communicator, [&]() -> std::string {
    lock->require_mine();
    const OutputHistory history = set_aside_earlier_runs(options, resumption);
    if (!history.moved.empty()) observer.on_line(history.moved);
    console->open_metrics(options, history.continued ? trainer.attempted_steps() : 0, *lock);
    return {};
  });
  for (const auto& way : trainer.describe_compression()) observer.on_line(way);
  for (const auto& note : notes_on_compression(options)) observer.on_line(note);

  const EndReport end = trainer.run();
  if (console) console->on_end(end);
  if (!options.trace.empty()) write_trace(trace, *communicator, options.trace);
  if (rank == 0 && !end.checkpoint_is_current) {
    // Before the others leave: launchers end everybody as soon as one has failed.
    std::fputs(fmt::format("thinwire: the run ended without its last checkpoint: {}\n",
                           end.checkpoint_failure)
                   .c_str(),
               stderr);
  }
  communicator->barrier()->wait();
  if (!end.checkpoint_is_current) return static_cast<int>(ExitCode::cannot_write);
  return static_cast<int>(end.stopped ? ExitCode::stopped_with_checkpoint : ExitCode::done);
}

// The folder by the name that it has for all ranks of a machine, whether it is there yet or not.
std::string whole_path(const std::string& folder) {
  std::error_code unknown;
  const auto path =
      std::filesystem::weakly_canonical(std::filesystem::absolute(folder, unknown), unknown);
  return unknown ? folder : path.string();
}

// Collective: who may join the lifeline, and where.
Lifeline::Access lifeline_access(Communicator& communicator, const Job& job) {
  Lifeline::Access access{job.admission.identity, job.lifeline_address};
  if (job.admission.means == Admission::Means::mpi) {
    access.identity.key = share_new_key(communicator);
  }
  return access;
}

int train_rank(std::unique_ptr<Communicator> transport, const CommandLine& line, const Job& job,
               const DataSplit& data, const MakeModel& make, SignalWatcher& signals,
               const Screen& screen) {
  const TrainOptions& options = line.train;
  const int rank = transport->rank();
  Trace trace(rank);
  FlightRecorder recorder(rank);
  const auto meter = std::make_shared<Meter>(
      [&](const OperationRecord& record) {
        if (!options.trace.empty()) trace.span("wire", record.name, record.start, record.end);
      },
      &recorder);
  const auto communicator = make_metered(std::move(transport), meter);
  std::unique_ptr<GpuRank> gpu;
  std::atomic<GpuRank*> gpu_to_abort = nullptr;
  HeldFolder held;  // until the last thing was written
  RankWatch watch({.rank = rank,
                   .recorder = recorder,
                   .signals = signals,
                   .output = options.output,
                   .owns_output = [&] { return !belongs_to_another(options.output, held.token); },
                   .abort =
                       [&](const std::string& reason) {
                         communicator->abort(reason);
                         if (GpuRank* const started = gpu_to_abort) started->abort(reason);
                       }});
  try {
    const bool are_processes = communicator->size() > 1 && line.train.ranks == 1;
    if (are_processes) {
      const std::string warning =
          watch.connect(*communicator, lifeline_access(*communicator, job), job.timeout);
      if (rank == 0 && !warning.empty())
        std::fputs(("thinwire: " + warning + "\n").c_str(), stderr);
    }
    const Device device = choose_rank_device(line.train, job.environment, rank);
    require_same_kind(*communicator, device);
    if (device.kind == Device::Kind::cuda) {
      gpu = make_gpu_rank(device, share_policy(line.train), *communicator, meter);
      gpu_to_abort = gpu.get();
    }
    const int code =
        train_watched(communicator, line, data, make, signals, screen, gpu.get(),
                      {.trace = trace, .recorder = recorder, .meter = meter, .held = held});
    watch.goodbye();
    return code;
  } catch (const std::exception& error) {
    try {
      watch.rethrow(error);  // tells the peers first: what follows may block
    } catch (...) {
      if (gpu) gpu->abort(message(error));
      throw;
    }
  }
}

Progress::Mode progress_mode(const Job& job) {
  // Launchers give ranks a terminal or a pipe of their own, wherever its output goes.
  return job.backend == Backend::threads ? Progress::mode_for(1) : Progress::Mode::lines;
}

}  // namespace

int run_train(const TrainOptions& options, const CommandLine& line,
              const JobEnvironment& environment, const MakeModel& make, SignalWatcher& signals) {
  RunOutput output;
  const std::int64_t ranks = line.train.ranks;
  Job job = make_job(environment, {.backend = line.train.backend,
                                   .ranks = ranks,
                                   .timeout = std::chrono::seconds(options.timeout),
                                   .name = {line.train.job_id, whole_path(options.output)}});
  job.stop_requested = [&] { return signals.requested(); };
  const Device device = choose_rank_device(line.train, environment, 0);
  share_cores(environment, ranks, line.train.threads);
  const DataSplit data = load_data(options.data);
  validate(options, data, environment.world_size * line.train.ranks);
  // Of several processes, none leaves before it has met the others: they would wait for it.
  if (environment.world_size == 1 && signals.requested()) {
    return stop_before_the_first_step(0, output, checkpoints_so_far(options));
  }
  if (environment.rank == 0) output.write(describe(job) + ", on " + name(device) + "\n");
  return run_job(job, [&](std::unique_ptr<Communicator> communicator) {
    return train_rank(std::move(communicator), line, job, data, make, signals,
                      {.output = output, .mode = progress_mode(job)});
  });
}

}  // namespace thinwire
