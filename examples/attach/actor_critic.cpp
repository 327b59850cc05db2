// An actor and its critic learn to hold a cart at the origin, with clipped gradients.
// actor_critic_alone.cpp is the original, actor_critic.cpp the same on two ranks with half of the
// episodes:
//
//   build/examples/attach/actor_critic_alone 20        # steps
//   build/examples/attach/actor_critic 20 sign         # or none, powersgd:rank=2
#include <thinwire/thinwire.h>
#include <torch/torch.h>

#include <cstdio>
#include <string>
#include <thread>
#include <vector>

// A policy's logit and a value for each state.
// The weights come from a generator of their own: libtorch's is shared by all threads of a process.
torch::nn::Sequential make_net() {
  torch::nn::Sequential net(torch::nn::Linear(2, 32), torch::nn::Tanh(), torch::nn::Linear(32, 32),
                            torch::nn::Tanh(), torch::nn::Linear(32, 2));
  const torch::NoGradGuard no_grad;
  at::Generator random = at::detail::createCPUGenerator(1);
  for (at::Tensor& weight : net->parameters()) weight.normal_(0, 0.2, random);
  return net;
}

constexpr int kTime = 20;

// What is random in an episode: where it starts and its dice. Of 32 every ranks-th from rank on.
at::Tensor batch(int step, int rank, int ranks) {
  at::Generator random = at::detail::createCPUGenerator(1000 + step);
  return torch::rand({32, 2 + kTime}, random).slice(0, rank, 32, ranks);
}

int main(int, char** argv) {
  const int steps = std::stoi(argv[1]);
  torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kDouble));
  return thinwire::launch({.ranks = 2}, [&](auto ranks) {
    at::set_num_threads(1);
    torch::nn::Sequential net = make_net();
    thinwire::DataParallel parallel(*net, *ranks, thinwire::parse_compression(argv[2], "auto"));
    torch::optim::SGD optimizer(net->parameters(), 0.2);
    for (int step = 0; step < steps; ++step) {
      const at::Tensor dice = batch(step, ranks->rank(), ranks->size());
      at::Tensor place = 2 * dice.select(1, 0) - 1, speed = 2 * dice.select(1, 1) - 1;
      std::vector<at::Tensor> values, log_likelihoods, rewards;
      for (int t = 0; t < kTime; ++t) {
        const at::Tensor seen = net->forward(torch::stack({place, speed}, 1));
        const at::Tensor right = torch::sigmoid(seen.select(1, 0));
        const at::Tensor push = (dice.select(1, 2 + t) < right).to(torch::kDouble);
        log_likelihoods.push_back(torch::log(push * right + (1 - push) * (1 - right)));
        values.push_back(seen.select(1, 1));
        speed = 0.9 * speed + 0.4 * (2 * push - 1);
        place = place + 0.4 * speed;
        rewards.push_back(-place.square());
      }
      at::Tensor loss = torch::zeros({}), income = torch::zeros({});
      for (int t = kTime; t-- > 0;) {
        income = rewards[t] + 0.8 * income;
        const at::Tensor advantage = income - values[t];
        loss = loss + (0.1 * advantage.square() - log_likelihoods[t] * advantage.detach()).mean();
      }
      optimizer.zero_grad();
      loss.backward();
      parallel.finish();
      torch::nn::utils::clip_grad_norm_(net->parameters(), 0.5);
      optimizer.step();
      std::printf("step %d loss %.12f cost %.12f\n", step, loss.item<double>(),
                  -torch::stack(rewards).mean().item<double>());
    }
    for (const auto& weight : net->named_parameters()) {
      std::printf("sum %s %.12f\n", weight.key().c_str(), weight->sum().item<double>());
    }
  });
}
