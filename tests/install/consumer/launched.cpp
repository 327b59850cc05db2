// Ranks that some launcher starts. The first argument says what they do.
#include <collectives/base/error.h>
#include <launch/launch.h>

#include <ATen/ops/ones.h>

#include <cstdio>
#include <cstring>

void sum(thinwire::Communicator& ranks) {
  const at::Tensor one = at::ones({1000});
  ranks.all_reduce(one, thinwire::ReduceOp::sum)->wait();
  if (ranks.rank() == 0) std::printf("a sum of %.0f ranks\n", one.const_data_ptr<float>()[999]);
}

// What a program does that makes its communicator itself.
int sum_over_sockets() {
  sum(*thinwire::make_socket_communicator(thinwire::socket_options(thinwire::job_environment())));
  return 0;
}

int main(int argc, char** argv) {
  const char* const what = argc > 1 ? argv[1] : "sum";
  if (std::strcmp(what, "sockets") == 0) return sum_over_sockets();
  return thinwire::launch(argc, argv, [what](std::unique_ptr<thinwire::Communicator> ranks) {
    if (std::strcmp(what, "fail") == 0 && ranks->rank() == 1) {
      throw thinwire::DataError("the data are damaged; fetch them again");
    }
    sum(*ranks);
  });
}
