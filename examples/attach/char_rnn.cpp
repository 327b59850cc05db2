// An LSTM that reads a text letter by letter and keeps its state from one batch to the next.
// char_rnn_alone.cpp is the original, char_rnn.cpp the same on two ranks with half of the readers:
//
//   build/examples/attach/char_rnn_alone 20        # steps
//   build/examples/attach/char_rnn 20 sign         # or none, powersgd:rank=2
#include <thinwire/thinwire.h>
#include <torch/torch.h>

#include <cstdio>
#include <string>
#include <thread>
#include <vector>

const char kText[] =
    "one wire is thin and many ranks must share it so each rank sends a little of what it knows "
    "and keeps the rest until the next step when the rest is sent with what is new and so nothing "
    "that a rank has seen is ever lost but only late and all the ranks end with the same weights ";

struct Net : torch::nn::Module {
  Net() {
    register_module("lstm", lstm);
    register_module("letter", letter);
    const torch::NoGradGuard no_grad;
    // A generator of its own: libtorch's is shared by all threads of a process.
    at::Generator random = at::detail::createCPUGenerator(1);
    for (at::Tensor& weight : parameters()) weight.normal_(0, 0.2, random);
  }
  torch::nn::LSTM lstm{27, 48};
  torch::nn::Linear letter{48, 27};
};

// What 8 readers, each at a place of its own, read next: 16 letters and the one after each. Every
// ranks-th reader from rank on.
std::pair<at::Tensor, at::Tensor> batch(int step, int rank, int ranks) {
  std::vector<std::int64_t> letters;
  const int length = sizeof(kText) - 1;
  for (int i = 0; i <= 16; ++i) {
    for (int reader = rank; reader < 8; reader += ranks) {
      const char letter = kText[(reader * 37 + step * 16 + i) % length];
      letters.push_back(letter == ' ' ? 26 : letter - 'a');
    }
  }
  const at::Tensor all = torch::tensor(letters).view({17, -1});
  return {torch::one_hot(all.narrow(0, 0, 16), 27).to(torch::kDouble), all.narrow(0, 1, 16)};
}

int main(int, char** argv) {
  const int steps = std::stoi(argv[1]);
  torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kDouble));
  return thinwire::launch({.ranks = 2}, [&](auto ranks) {
    at::set_num_threads(1);
    Net net;
    thinwire::DataParallel parallel(net, *ranks, thinwire::parse_compression(argv[2], "auto"));
    torch::optim::SGD optimizer(net.parameters(), 1.0);
    std::optional<std::tuple<at::Tensor, at::Tensor>> state;
    for (int step = 0; step < steps; ++step) {
      const auto [letters, next] = batch(step, ranks->rank(), ranks->size());
      optimizer.zero_grad();
      const auto [read, after] = net.lstm->forward(letters, state);
      state = {std::get<0>(after).detach(), std::get<1>(after).detach()};
      const at::Tensor guess = net.letter->forward(read);
      const at::Tensor loss = torch::cross_entropy_loss(guess.flatten(0, 1), next.flatten());
      loss.backward();
      parallel.finish();
      optimizer.step();
      std::printf("step %d loss %.12f\n", step, loss.item<double>());
    }
    for (const auto& weight : net.named_parameters()) {
      std::printf("sum %s %.12f\n", weight.key().c_str(), weight->sum().item<double>());
    }
  });
}
