// `thinwire bench`.
#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "collectives/base/error.h"
#include "collectives/compression/options.h"
#include "collectives/compression/parse.h"
#include "collectives/compression/reducer/make_reducer.h"
#include "collectives/metered.h"
#include "launch/bench_shapes.h"
#include "launch/commands.h"
#include "launch/cores.h"
#include "launch/job.h"
#include "launch/output.h"
#include "launch/version.h"
#include "runtime/buckets/gradient_buckets.h"

namespace thinwire {
namespace {

// What is timed: one call on this rank, and whether its result is right.
class Subject {
 public:
  virtual ~Subject() = default;
  virtual void run() = 0;
  // Runs once on known input; how many of this rank's values are wrong. Collective.
  virtual std::int64_t count_wrong() = 0;
};

// The communicator's own sum.
class PlainSum final : public Subject {
 public:
  PlainSum(Communicator& communicator, std::int64_t count)
      : communicator_(communicator), values_(at::empty({count}, at::kFloat)) {
    values_.zero_();
  }

  void run() override { communicator_.all_reduce(values_, ReduceOp::sum)->wait(); }

  std::int64_t count_wrong() override {
    float* values = values_.data_ptr<float>();
    for (std::int64_t i = 0; i < values_.numel(); ++i) values[i] = input(communicator_.rank(), i);
    run();
    std::int64_t wrong = 0;
    for (std::int64_t i = 0; i < values_.numel(); ++i) {
      float expected = 0;
      for (int rank = 0; rank < communicator_.size(); ++rank) expected += input(rank, i);
      wrong += values[i] != expected;
    }
    return wrong;
  }

 private:
  // Small whole numbers: their sum is exact.
  static float input(int rank, std::int64_t i) {
    return static_cast<float>((rank * 31 + i * 7 + i / 5) % 97);
  }

  Communicator& communicator_;
  at::Tensor values_;
};

// One bucket that is one matrix.
std::vector<Bucket> flat_bucket(std::int64_t count) {
  Bucket bucket;
  bucket.gradient = at::empty({count}, at::kFloat);
  const std::int64_t columns = std::gcd(count, std::int64_t{1024});
  bucket.slices.push_back({"matrix", {count / columns, columns}, 0, count, false});
  return {bucket};
}

// The buckets that the trainer makes for a model with these parameters.
std::vector<Bucket> model_buckets(const std::vector<NamedShape>& shapes, std::int64_t bucket_mb) {
  std::vector<Parameter> parameters;
  for (const auto& [name, shape] : shapes) {
    parameters.push_back({name, at::empty(shape, at::kFloat).set_requires_grad(true)});
  }
  return GradientBuckets(std::move(parameters),
                         {.bucket_bytes = bucket_mb << 20, .weights = WeightStorage::untouched})
      .buckets();
}

// The mean as DataParallel makes it, one bucket after the other.
class ReducedMean final : public Subject {
 public:
  ReducedMean(Communicator& communicator, const CompressionOptions& compression,
              std::vector<Bucket> buckets, const ReducerDevice& device)
      : communicator_(communicator),
        reduction_(make_reduction(compression, device)),
        buckets_(std::move(buckets)) {
    fill();
    for (const Bucket& bucket : buckets_) {
      reduction_.reducer->prepare(bucket, communicator.rank(), communicator.size());
      if (reduction_.before) reduction_.before->prepare(bucket);
    }
  }

  void run() override {
    const StepContext step{.step = step_++};
    GradientReducer& reducer = *reduction_.reducer;
    for (Bucket& bucket : buckets_) {
      if (reduction_.before) reduction_.before->before_reduce(bucket, step);
      reducer.stage(bucket, communicator_, step);
    }
    reducer.settle(communicator_);
    for (const Bucket& bucket : buckets_) {
      if (reducer.non_finite(bucket)) throw Bug("bug: the benchmark's gradient is not finite");
    }
    for (Bucket& bucket : buckets_) {
      reducer.commit(bucket);
      if (reduction_.before) reduction_.before->commit(bucket);
    }
  }

  std::int64_t count_wrong() override {
    fill();
    run();
    std::int64_t wrong = 0;
    for (const Bucket& bucket : buckets_) {
      at::Tensor first = bucket.gradient.clone();
      communicator_.broadcast(first, 0)->wait();
      const float* mine = bucket.gradient.data_ptr<float>();
      const float* theirs = first.data_ptr<float>();
      for (std::int64_t i = 0; i < first.numel(); ++i) wrong += !(mine[i] == theirs[i]);
    }
    return wrong;
  }

 private:
  void fill() {
    for (const Bucket& bucket : buckets_) {
      for (const Slice& slice : bucket.slices) {
        float* values = bucket.gradient.data_ptr<float>() + slice.offset;
        for (std::int64_t i = 0; i < slice.numel; ++i) {
          values[i] = static_cast<float>((communicator_.rank() * 31 + i * 7 + i / 5) % 97 - 48);
        }
      }
    }
  }

  Communicator& communicator_;
  Reduction reduction_;
  std::vector<Bucket> buckets_;
  std::int64_t step_ = 0;
};

// One line of the table.
struct Row {
  std::int64_t bytes = 0;
  double mean_us = 0;  // over the runs, of the slowest rank; so are the next
  double median_us = 0;
  double min_us = 0;
  std::int64_t wrong = 0;        // over all ranks
  double wire_bytes = 0;         // per run, sent by this rank
  double in_collectives_us = 0;  // per run, this rank's: the rest is arithmetic

  double algbw() const { return static_cast<double>(bytes) / mean_us / 1e3; }
  double busbw(int size) const { return ring_bytes(algbw(), size); }
};

Row measure(Subject& subject, std::int64_t bytes, const BenchOptions& options,
            Communicator& communicator, const Meter& meter) {
  Row row;
  row.bytes = bytes;
  // First, so that memory is touched and connections are made.
  row.wrong = subject.count_wrong();
  for (std::int64_t i = 0; i < options.warmup; ++i) subject.run();
  communicator.barrier()->wait();
  const Traffic traffic_before = meter.total();
  const double waited_before = meter.waited();
  std::vector<std::int64_t> times;  // ns
  auto before = Clock::now();
  for (std::int64_t i = 0; i < options.iterations; ++i) {
    subject.run();
    const auto now = Clock::now();
    times.push_back(std::chrono::nanoseconds(now - before).count());
    before = now;
  }
  const auto runs = static_cast<double>(options.iterations);
  const Traffic traffic = meter.total();
  row.wire_bytes = static_cast<double>(traffic.bytes_sent - traffic_before.bytes_sent) / runs;
  row.in_collectives_us = 1e6 * (meter.waited() - waited_before) / runs;
  const std::int64_t total = std::accumulate(times.begin(), times.end(), std::int64_t{0});
  std::sort(times.begin(), times.end());
  const auto slowest =
      all_reduce_max(communicator, {total, times[times.size() / 2], times.front()});
  row.mean_us = static_cast<double>(slowest[0]) / runs / 1e3;
  row.median_us = static_cast<double>(slowest[1]) / 1e3;
  row.min_us = static_cast<double>(slowest[2]) / 1e3;
  row.wrong = static_cast<std::int64_t>(
      all_reduce_sum(communicator, {static_cast<double>(row.wrong)}).front());
  return row;
}

std::vector<std::int64_t> sizes(const BenchOptions& options) {
  std::vector<std::int64_t> result;
  if (options.shapes == BenchShapes::resnet50) {
    std::int64_t count = 0;
    for (const auto& [_, shape] : resnet50_shapes()) count += c10::multiply_integers(shape);
    return {4 * count};
  }
  for (std::int64_t bytes = options.min_bytes; bytes <= options.max_bytes;
       bytes *= options.factor) {
    result.push_back(bytes / 4 * 4);
  }
  return result;
}

void print_head(const BenchOptions& options, int size, Backend backend) {
  print(fmt::format(
      "# thinwire {} bench all-reduce: {} ranks over {}, compressor {}, {} runs after {}\n#\n",
      kVersion, size, name(backend), options.compressor, options.iterations, options.warmup));
  print(fmt::format("#{:>11} {:>13} {:>7} {:>7} {:>11} {:>8} {:>8} {:>7} {:>13}\n", "size", "count",
                    "type", "redop", "time", "algbw", "busbw", "#wrong", "wire"));
  print(fmt::format("#{:>11} {:>13} {:>7} {:>7} {:>11} {:>8} {:>8} {:>7} {:>13}\n", "(B)",
                    "(elements)", "", "", "(us)", "(GB/s)", "(GB/s)", "", "(B)"));
}

void print_row(const Row& row, const std::string& redop, int size) {
  print(fmt::format(" {:>11} {:>13} {:>7} {:>7} {:>11.1f} {:>8.4f} {:>8.4f} {:>7} {:>13.0f}\n",
                    row.bytes, row.bytes / 4, "float", redop, row.mean_us, row.algbw(),
                    row.busbw(size), row.wrong, row.wire_bytes));
}

void write_json(const BenchOptions& options, const std::vector<Row>& rows,
                const std::vector<std::string>& totals, const std::string& redop) {
  const int size = static_cast<int>(totals.size());
  nlohmann::ordered_json document{{"version", kVersion},
                                  {"operation", "all_reduce"},
                                  {"ranks", size},
                                  {"compressor", options.compressor},
                                  {"feedback", options.feedback},
                                  {"shapes", name(options.shapes)},
                                  {"iterations", options.iterations},
                                  {"warmup", options.warmup}};
  auto& results = document["results"] = nlohmann::ordered_json::array();
  for (const Row& row : rows) {
    results.push_back({{"size", row.bytes},
                       {"count", row.bytes / 4},
                       {"type", "float"},
                       {"redop", redop},
                       {"time_us", row.mean_us},
                       {"median_us", row.median_us},
                       {"min_us", row.min_us},
                       {"algbw", row.algbw()},
                       {"busbw", row.busbw(size)},
                       {"wrong", row.wrong},
                       {"wire_bytes", row.wire_bytes},
                       {"in_collectives_us", row.in_collectives_us}});
  }
  // Everything that each rank sent, warm-up and checks too: to hold against a network's counters.
  auto& sent = document["wire_bytes_total"] = nlohmann::ordered_json::array();
  for (const std::string& total : totals) sent.push_back(std::stoll(total));
  std::ofstream file(options.json);
  file << document.dump(2) << '\n';
  file.flush();
  if (!file) {
    throw Error(ExitCode::cannot_write,
                fmt::format("cannot write '{}'; check the folder and its space", options.json));
  }
}

std::vector<Bucket> make_buckets(const BenchOptions& options, std::int64_t count) {
  switch (options.shapes) {
    case BenchShapes::flat:
      return flat_bucket(count);
    case BenchShapes::resnet50:
      return model_buckets(resnet50_shapes(), options.bucket_mb);
  }
  throw Bug("bug: unknown shapes");
}

void bench_rank(std::unique_ptr<Communicator> transport, const BenchOptions& options,
                const CompressionOptions& compression, const Job& job) {
  const auto meter = std::make_shared<Meter>();
  const auto communicator = make_metered(std::move(transport), meter);
  const bool plain = options.compressor == "none";
  const std::string redop = plain ? "sum" : "mean";
  const bool speaks = communicator->rank() == 0;
  const auto team = make_team(*communicator, options.exchange_threads, 0);
  const ReducerDevice device{
      .for_float = choose_kernels(options.kernels, plain ? 0 : options.max_bytes / 4).kernels,
      .queue = make_host_queue(team)};
  if (speaks && team) print(fmt::format("# codecs on {} threads a rank\n", team->size()));
  if (speaks) print_head(options, communicator->size(), job.backend);
  std::vector<Row> rows;
  for (const std::int64_t bytes : sizes(options)) {
    std::unique_ptr<Subject> subject;
    if (plain) {
      subject = std::make_unique<PlainSum>(*communicator, bytes / 4);
    } else {
      subject = std::make_unique<ReducedMean>(*communicator, compression,
                                              make_buckets(options, bytes / 4), device);
    }
    rows.push_back(measure(*subject, bytes, options, *communicator, *meter));
    if (speaks) print_row(rows.back(), redop, communicator->size());
  }
  const auto totals = all_gather_text(*communicator, fmt::format("{}", meter->total().bytes_sent));
  std::int64_t wrong = 0;
  double busbw = 0;
  for (const Row& row : rows) {
    wrong += row.wrong;
    busbw += row.busbw(communicator->size()) / static_cast<double>(rows.size());
  }
  if (speaks) {
    print(fmt::format("# wrong values: {} {}\n# average busbw: {:.4f} GB/s\n", wrong,
                      wrong == 0 ? "OK" : "FAILED", busbw));
    if (!options.json.empty()) write_json(options, rows, totals, redop);
  }
  communicator->barrier()->wait();
  if (wrong > 0) {
    throw AgreedError(ExitCode::ranks_disagree,
                      fmt::format("{} values are wrong; report this, with the table", wrong));
  }
}

}  // namespace

int run_bench(const BenchOptions& options, const JobEnvironment& environment) {
  const CompressionOptions compression = parse_compression(options.compressor, options.feedback);
  const Job job = make_job(environment, {.backend = options.backend,
                                         .ranks = options.ranks,
                                         .timeout = std::chrono::seconds(options.timeout),
                                         .name = {options.job_id, ""}});
  share_cores(environment, options.ranks);
  return run_job(job, [&](std::unique_ptr<Communicator> communicator) {
    bench_rank(std::move(communicator), options, compression, job);
    return 0;
  });
}

}  // namespace thinwire
