// An encoder that two heads share, each with a loss and a backward of its own.
// two_heads_alone.cpp is the original, two_heads.cpp the same on two ranks with half of each batch:
//
//   build/examples/attach/two_heads_alone 20        # steps
//   build/examples/attach/two_heads 20 sign         # or none, powersgd:rank=2
#include <thinwire/thinwire.h>
#include <torch/torch.h>

#include <cstdio>
#include <string>
#include <thread>

struct Net : torch::nn::Module {
  Net() {
    register_module("encoder", encoder);
    register_module("size", size);
    register_module("sign", sign);
    const torch::NoGradGuard no_grad;
    // A generator of its own: libtorch's is shared by all threads of a process.
    at::Generator random = at::detail::createCPUGenerator(1);
    for (at::Tensor& weight : parameters()) weight.normal_(0, 0.2, random);
  }
  torch::nn::Sequential encoder{torch::nn::Linear(8, 32), torch::nn::Tanh(),
                                torch::nn::Linear(32, 32), torch::nn::Tanh()};
  torch::nn::Linear size{32, 1};
  torch::nn::Linear sign{32, 2};
};

// Points, their size and their signs: of 32 samples every ranks-th from rank on.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch(int step, int rank, int ranks) {
  at::Generator random = at::detail::createCPUGenerator(1000 + step);
  const at::Tensor points = torch::randn({32, 8}, random).slice(0, rank, 32, ranks);
  return {points, points.square().mean(1, true), (points.narrow(1, 0, 2) > 0).to(torch::kDouble)};
}

int main(int, char** argv) {
  const int steps = std::stoi(argv[1]);
  torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kDouble));
  return thinwire::launch({.ranks = 2}, [&](auto ranks) {
    at::set_num_threads(1);
    Net net;
    thinwire::DataParallel parallel(net, *ranks, thinwire::parse_compression(argv[2], "auto"));
    torch::optim::SGD optimizer(net.parameters(), 0.2);
    for (int step = 0; step < steps; ++step) {
      const auto [points, sizes, signs] = batch(step, ranks->rank(), ranks->size());
      optimizer.zero_grad();
      const at::Tensor code = net.encoder->forward(points);
      const at::Tensor loss =
          torch::binary_cross_entropy_with_logits(net.sign->forward(code), signs);
      loss.backward({}, /*retain_graph=*/true);
      const at::Tensor size_loss = torch::mse_loss(net.size->forward(code), sizes);
      size_loss.backward();
      parallel.finish();
      optimizer.step();
      std::printf("step %d loss %.12f size %.12f\n", step, loss.item<double>(),
                  size_loss.item<double>());
    }
    for (const auto& weight : net.named_parameters()) {
      std::printf("sum %s %.12f\n", weight.key().c_str(), weight->sum().item<double>());
    }
  });
}
