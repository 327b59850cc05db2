// Times MPI's own all-reduce of float32 values, as `thinwire bench all-reduce` times ours.
//
//   mpirun -np 2 build/tests/bench/mpi_all_reduce BYTES RUNS WARMUP FILE
//
// Rank 0 writes {"time_us", "median_us", "min_us"} to FILE: mean, median and least of the runs,
// each of the slowest rank.
#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

namespace {

void measure(int count, int runs, int warmup, const std::string& file) {
  std::vector<float> values(static_cast<std::size_t>(count));
  const auto run = [&] {
    MPI_Allreduce(MPI_IN_PLACE, values.data(), count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
  };
  for (int i = 0; i < warmup; ++i) run();
  MPI_Barrier(MPI_COMM_WORLD);
  std::vector<double> times;  // s
  for (int i = 0; i < runs; ++i) {
    const double start = MPI_Wtime();
    run();
    times.push_back(MPI_Wtime() - start);
  }
  std::sort(times.begin(), times.end());
  double slowest[] = {std::accumulate(times.begin(), times.end(), 0.0) / runs,
                      times[times.size() / 2], times.front()};
  MPI_Allreduce(MPI_IN_PLACE, slowest, 3, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank != 0) return;
  std::ofstream(file) << fmt::format(R"({{"time_us": {}, "median_us": {}, "min_us": {}}})"
                                     "\n",
                                     1e6 * slowest[0], 1e6 * slowest[1], 1e6 * slowest[2]);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    fmt::print(stderr, "usage: mpi_all_reduce BYTES RUNS WARMUP FILE\n");
    return 2;
  }
  MPI_Init(&argc, &argv);
  measure(std::stoi(argv[1]) / 4, std::stoi(argv[2]), std::stoi(argv[3]), argv[4]);
  MPI_Finalize();
  return 0;
}
