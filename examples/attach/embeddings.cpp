// Embeddings with sparse gradients: how well readers like books, of which each has a vector.
// embeddings_alone.cpp is the original, embeddings.cpp the same on two ranks with half of each
// batch:
//
//   build/examples/attach/embeddings_alone 20        # steps
//   build/examples/attach/embeddings 20 sign         # or none, powersgd:rank=2
#include <thinwire/thinwire.h>
#include <torch/torch.h>

#include <cstdio>
#include <string>
#include <thread>

constexpr int kReaders = 60;
constexpr int kBooks = 80;

struct Net : torch::nn::Module {
  Net() {
    register_module("readers", readers);
    register_module("books", books);
    const torch::NoGradGuard no_grad;
    // A generator of its own: libtorch's is shared by all threads of a process.
    at::Generator random = at::detail::createCPUGenerator(1);
    for (at::Tensor& weight : parameters()) weight.normal_(0, 0.3, random);
  }
  torch::nn::Embedding readers{torch::nn::EmbeddingOptions(kReaders, 16).sparse(true)};
  torch::nn::Embedding books{torch::nn::EmbeddingOptions(kBooks, 16).sparse(true)};
};

// Readers, books and ratings: of 64 samples every ranks-th from rank on.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch(int step, int rank, int ranks) {
  at::Generator random = at::detail::createCPUGenerator(1000 + step);
  const at::Tensor drawn = torch::rand({64, 2}, random).slice(0, rank, 64, ranks);
  const at::Tensor readers = (drawn.select(1, 0) * kReaders).to(torch::kLong);
  const at::Tensor books = (drawn.select(1, 1) * kBooks).to(torch::kLong);
  return {readers, books, torch::cos((readers - books).to(torch::kDouble))};
}

int main(int, char** argv) {
  const int steps = std::stoi(argv[1]);
  torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kDouble));
  return thinwire::launch({.ranks = 2}, [&](auto ranks) {
    at::set_num_threads(1);
    Net net;
    thinwire::DataParallel parallel(net, *ranks, thinwire::parse_compression(argv[2], "auto"));
    torch::optim::SGD optimizer(net.parameters(), 4.0);
    for (int step = 0; step < steps; ++step) {
      const auto [readers, books, ratings] = batch(step, ranks->rank(), ranks->size());
      optimizer.zero_grad();
      const at::Tensor likes = (net.readers->forward(readers) * net.books->forward(books)).sum(1);
      const at::Tensor loss = torch::mse_loss(likes, ratings);
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
