// Batch normalisation, with a last batch that is smaller and does not divide by two.
//
// Every rank normalises over its own part of a batch. So that both can be compared, the original
// takes a batch in two parts too, one after the other, as one does who has little memory; and
// running statistics are plain averages, of which the mean over ranks is the original's.
// batch_norm_alone.cpp is the original, batch_norm.cpp the same on two ranks with a part each:
//
//   build/examples/attach/batch_norm_alone 20        # steps
//   build/examples/attach/batch_norm 20 sign         # or none, powersgd:rank=2
#include <thinwire/thinwire.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <thread>

// The weights come from a generator of their own: libtorch's is shared by all threads of a process.
torch::nn::Sequential make_net() {
  const auto norm = torch::nn::BatchNorm1dOptions(32).momentum(std::nullopt);
  torch::nn::Sequential net(torch::nn::Linear(6, 32), torch::nn::BatchNorm1d(norm),
                            torch::nn::Tanh(), torch::nn::Linear(32, 32),
                            torch::nn::BatchNorm1d(norm), torch::nn::Tanh(),
                            torch::nn::Linear(32, 1));
  const torch::NoGradGuard no_grad;
  at::Generator random = at::detail::createCPUGenerator(1);
  for (at::Tensor& weight : net->parameters()) weight.normal_(0, 0.3, random);
  return net;
}

// Of 85 samples the next 32, or the last 21, and of those every second from `part` on: 11 and 10.
std::pair<at::Tensor, at::Tensor> batch(int step, int part) {
  at::Generator random = at::detail::createCPUGenerator(1000);
  const at::Tensor all = torch::randn({85, 6}, random);
  const int begin = step % 3 * 32;
  const at::Tensor points = all.slice(0, begin + part, std::min(begin + 32, 85), 2);
  return {points, torch::sin(2 * points.narrow(1, 0, 1)) + points.narrow(1, 1, 1)};
}

int main(int, char** argv) {
  const int steps = std::stoi(argv[1]);
  torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kDouble));
  return thinwire::launch({.ranks = 2}, [&](auto ranks) {
    at::set_num_threads(1);
    torch::nn::Sequential net = make_net();
    thinwire::DataParallel parallel(*net, *ranks, thinwire::parse_compression(argv[2], "auto"));
    torch::optim::SGD optimizer(net->parameters(), 0.1);
    for (int step = 0; step < steps; ++step) {
      optimizer.zero_grad();
      std::int64_t samples = 0;
      at::Tensor loss = torch::zeros({});  // the sum over samples
      for (const int part : {ranks->rank()}) {
        const auto [points, values] = batch(step, part);
        loss = loss + (net->forward(points) - values).square().sum();
        samples += points.size(0);
      }
      loss = loss / samples;
      loss.backward();
      parallel.finish(samples);
      optimizer.step();
      std::printf("step %d loss %.12f samples %lld\n", step, loss.item<double>(),
                  static_cast<long long>(samples));
    }
    for (const auto& weight : net->named_parameters()) {
      std::printf("sum %s %.12f\n", weight.key().c_str(), weight->sum().item<double>());
    }
    for (const auto& statistic : net->named_buffers()) {
      if (!statistic->is_floating_point()) continue;
      std::printf("running %s %.12f\n", statistic.key().c_str(), statistic->sum().item<double>());
    }
  });
}
