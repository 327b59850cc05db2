// A physics-informed network: u'' = -pi^2 sin(pi x) with u(0) = u(1) = 0, by LBFGS, whose closure
// differentiates twice.
// pinn_alone.cpp is the original, pinn.cpp the same on two ranks with half of the points:
//
//   build/examples/attach/pinn_alone 20        # steps
//   build/examples/attach/pinn 20 none         # or sign, powersgd:rank=2
#include <thinwire/thinwire.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <thread>

// The weights come from a generator of their own: libtorch's is shared by all threads of a process.
torch::nn::Sequential make_net() {
  torch::nn::Sequential net(torch::nn::Linear(1, 16), torch::nn::Tanh(), torch::nn::Linear(16, 16),
                            torch::nn::Tanh(), torch::nn::Linear(16, 1));
  const torch::NoGradGuard no_grad;
  at::Generator random = at::detail::createCPUGenerator(1);
  for (at::Tensor& weight : net->parameters()) weight.normal_(0, 0.5, random);
  return net;
}

// Of 64 points every ranks-th from rank on.
at::Tensor points(int rank, int ranks) {
  return ((torch::arange(64) + 0.5) / 64).view({64, 1}).slice(0, rank, 64, ranks);
}

at::Tensor derivative(const at::Tensor& of, const at::Tensor& by) {
  return torch::autograd::grad({of.sum()}, {by}, {}, std::nullopt, /*create_graph=*/true)[0];
}

int main(int, char** argv) {
  const int steps = std::stoi(argv[1]);
  torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kDouble));
  return thinwire::launch({.ranks = 2}, [&](auto ranks) {
    at::set_num_threads(1);
    torch::nn::Sequential net = make_net();
    thinwire::DataParallel parallel(*net, *ranks, thinwire::parse_compression(argv[2], "auto"));
    const at::Tensor x = points(ranks->rank(), ranks->size()).requires_grad_();
    const at::Tensor ends = torch::tensor({0.0, 1.0}).view({2, 1});
    const auto options = torch::optim::LBFGSOptions(1).max_iter(2).line_search_fn("strong_wolfe");
    torch::optim::LBFGS optimizer(net->parameters(), options);
    const auto closure = [&] {
      optimizer.zero_grad();
      const at::Tensor u = net->forward(x);
      const at::Tensor wrong = derivative(derivative(u, x), x) + M_PI * M_PI * torch::sin(M_PI * x);
      const at::Tensor loss = wrong.square().mean() + 10 * net->forward(ends).square().mean();
      loss.backward();
      return loss;
    };
    for (int step = 0; step < steps; ++step) {
      const at::Tensor loss = parallel.step(optimizer, closure);
      std::printf("step %d loss %.12f\n", step, loss.item<double>());
    }
    for (const auto& weight : net->named_parameters()) {
      std::printf("sum %s %.12f\n", weight.key().c_str(), weight->sum().item<double>());
    }
  });
}
