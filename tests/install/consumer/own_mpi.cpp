// A program that starts and ends MPI itself. The argument says how.
#include <collectives/base/error.h>
#include <collectives/mpi/mpi_communicator.h>

#include <ATen/ops/ones.h>

#include <cstdio>
#include <cstring>

double sum_of_ranks() {
  const auto ranks = thinwire::make_mpi_communicator(MPI_COMM_WORLD);
  const at::Tensor one = at::ones({1000});
  ranks->all_reduce(one, thinwire::ReduceOp::sum)->wait();
  return one.const_data_ptr<float>()[999];
}

int main(int argc, char** argv) {
  const char* const how = argc > 1 ? argv[1] : "threads";
  const auto is = [how](const char* word) { return std::strcmp(how, word) == 0; };
  int code = 0;
  try {
    if (is("nothing")) sum_of_ranks();
    int provided = 0;
    if (is("plain") || is("plain-environment")) {
      MPI_Init(&argc, &argv);
    } else {
      MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
    }
    if (is("finalized")) {
      MPI_Finalize();
      const thinwire::MpiEnvironment environment;
    }
    if (is("environment") || is("plain-environment")) {
      const thinwire::MpiEnvironment environment;
      std::printf("a sum of %.0f ranks\n", sum_of_ranks());
    } else {
      std::printf("a sum of %.0f ranks\n", sum_of_ranks());
    }
  } catch (const thinwire::Error& error) {
    std::printf("%s\n", error.what());
    code = static_cast<int>(error.code());
  }
  // MPI is still this program's.
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (initialized && !finalized) {
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Finalize();
    std::printf("ended by its own MPI_Finalize\n");
  }
  return code;
}
