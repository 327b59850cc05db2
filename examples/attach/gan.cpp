// A GAN with two optimizers: the generator learns through a discriminator that is not frozen.
// gan_alone.cpp is the original, gan.cpp the same on two ranks with half of each batch:
//
//   build/examples/attach/gan_alone 20        # steps
//   build/examples/attach/gan 20 sign         # or none, powersgd:rank=2
#include <thinwire/thinwire.h>
#include <torch/torch.h>

#include <cstdio>
#include <string>
#include <thread>

// The weights come from a generator of their own: libtorch's is shared by all threads of a process.
torch::nn::Sequential make_net(int inputs, int outputs, int seed) {
  torch::nn::Sequential net(torch::nn::Linear(inputs, 32), torch::nn::Tanh(),
                            torch::nn::Linear(32, 32), torch::nn::Tanh(),
                            torch::nn::Linear(32, outputs));
  const torch::NoGradGuard no_grad;
  at::Generator random = at::detail::createCPUGenerator(seed);
  for (at::Tensor& weight : net->parameters()) weight.normal_(0, 0.2, random);
  return net;
}

// Noise for the generator, and points around (1, -1): of 64 samples every ranks-th from rank on.
std::pair<at::Tensor, at::Tensor> batch(int step, int rank, int ranks) {
  at::Generator random = at::detail::createCPUGenerator(1000 + step);
  const at::Tensor drawn = torch::randn({64, 6}, random).slice(0, rank, 64, ranks);
  return {drawn.narrow(1, 0, 4), 0.3 * drawn.narrow(1, 4, 2) + torch::tensor({1.0, -1.0})};
}

int main(int, char** argv) {
  const int steps = std::stoi(argv[1]);
  torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kDouble));
  thinwire::run_ranks(2, [&, coding = thinwire::parse_compression(argv[2], "auto")](auto ranks) {
    at::set_num_threads(1);
    torch::nn::Sequential generator = make_net(4, 2, 1);
    torch::nn::Sequential discriminator = make_net(2, 1, 2);
    thinwire::DataParallel g(*generator, *ranks, coding), d(*discriminator, *ranks, coding);
    torch::optim::SGD of_generator(generator->parameters(), 0.1);
    torch::optim::SGD of_discriminator(discriminator->parameters(), 0.1);
    for (int step = 0; step < steps; ++step) {
      const auto [noise, real] = batch(step, ranks->rank(), ranks->size());
      const at::Tensor fake = generator->forward(noise);
      of_generator.zero_grad();
      const at::Tensor generator_loss = (discriminator->forward(fake) - 1).square().mean();
      generator_loss.backward();
      of_discriminator.zero_grad();  // forgets what came through it on the way to the generator
      const at::Tensor loss = (discriminator->forward(real) - 1).square().mean() +
                              discriminator->forward(fake.detach()).square().mean();
      loss.backward();
      for (auto* parallel : {&g, &d}) parallel->finish();
      of_generator.step();
      of_discriminator.step();
      const at::Tensor distance = (fake - torch::tensor({1.0, -1.0})).square().sum(1).mean();
      std::printf("step %d loss %.12f generator %.12f distance %.12f\n", step, loss.item<double>(),
                  generator_loss.item<double>(), distance.item<double>());
    }
    for (const torch::nn::Sequential& net : {generator, discriminator}) {
      for (const auto& weight : net->named_parameters()) {
        const char* const name = net.get() == generator.get() ? "generator" : "discriminator";
        std::printf("sum %s.%s %.12f\n", name, weight.key().c_str(), weight->sum().item<double>());
      }
    }
  });
}
