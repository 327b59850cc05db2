// A libtorch training loop that you already have, made data-parallel: the five lines marked [1] to
// [5]. The optimizer stays torch's. The argument is a compressor, as `thinwire train` has it:
// "sign", "powersgd:rank=4".
//
//   build/examples/03_attach          last line: 4 ranks, 37032 bytes a step: loss fell tenfold
//   build/examples/03_attach sign     last line: 4 ranks, 2068 bytes a step: loss fell tenfold
#include <torch/torch.h>

#include <cstdio>

#include "collectives/metered.h"
#include "collectives/threads/thread_communicator.h"  // [1]
#include "runtime/data_parallel.h"                    // [2]

void train(thinwire::Communicator& ranks, thinwire::CompressionOptions compression,
           thinwire::Meter& meter) {
  torch::nn::Sequential model(torch::nn::Linear(20, 64), torch::nn::Tanh(),
                              torch::nn::Linear(64, 64), torch::nn::Tanh(),
                              torch::nn::Linear(64, 10));
  thinwire::DataParallel parallel(*model, ranks, compression);  // [3]
  torch::optim::SGD optimizer(model->parameters(), 0.3);

  // Each rank learns from samples of its own, by the same rule.
  const auto options = torch::TensorOptions().dtype(torch::kFloat);
  const at::Tensor input =
      torch::sin(torch::arange(32 * 20, options) * (1 + ranks.rank())).view({32, 20});
  const at::Tensor target = torch::tanh(input.narrow(1, 0, 10) + input.narrow(1, 10, 10));

  double first_loss = 0;
  double last_loss = 0;
  const auto before = meter.total().bytes_sent;
  const int steps = 600;
  for (int step = 0; step < steps; ++step) {
    optimizer.zero_grad();
    at::Tensor loss = torch::mse_loss(model->forward(input), target);
    loss.backward();
    parallel.finish();  // [4]
    optimizer.step();
    last_loss = loss.item<double>();
    if (step == 0) first_loss = last_loss;
  }
  if (ranks.rank() != 0) return;  // [5]
  std::printf("%d ranks, %lld bytes a step: loss fell %s\n", ranks.size(),
              static_cast<long long>((meter.total().bytes_sent - before) / steps),
              last_loss < first_loss / 10 ? "tenfold" : "too little");
}

int main(int argc, char** argv) try {
  const auto compression = thinwire::parse_compression(argc > 1 ? argv[1] : "none", "auto");
  at::set_num_threads(1);
  thinwire::run_ranks(4, [&](std::unique_ptr<thinwire::Communicator> ranks) {
    // The meter is only there for the number at the end.
    const auto meter = std::make_shared<thinwire::Meter>();
    train(*thinwire::make_metered(std::move(ranks), meter), compression, *meter);
  });
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
