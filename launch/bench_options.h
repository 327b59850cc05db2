// What `thinwire bench` can be told.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace thinwire {

// What is reduced: one matrix of each size, or what a model's backward leaves.
enum class BenchShapes { flat, resnet50 };

// "flat" or "resnet50".
std::string name(BenchShapes shapes);

// One measurement: which sizes, how often, compressed how, written where.
struct BenchOptions {
  std::int64_t ranks = 1;  // as threads of this process; 1 under mpirun
  std::int64_t min_bytes = 1024;
  std::int64_t max_bytes = 64 << 20;
  std::int64_t factor = 4;  // from one size to the next
  BenchShapes shapes = BenchShapes::flat;
  std::int64_t bucket_mb = 25;  // MiB of a model's gradients that travel together
  std::int64_t iterations = 20;
  std::int64_t warmup = 5;
  std::string compressor = "none";
  std::string feedback = "auto";
  std::string backend = "auto";
  std::string job_id;
  std::string exchange_threads = "1";  // of a compressor's arithmetic: auto | N
  std::string kernels = "auto";        // auto | a form of `info --kernels`
  std::int64_t timeout = 60;           // seconds that a collective may take
  std::string json;                    // file for the results; empty: none
};

// `arguments` come behind `bench all-reduce`: --FLAG VALUE or --FLAG=VALUE. Throws `UsageError`.
BenchOptions parse_bench(const std::vector<std::string>& arguments);

std::string bench_help_text();

}  // namespace thinwire
