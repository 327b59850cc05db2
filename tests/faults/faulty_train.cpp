// `thinwire` with one fault in its model, so that the product needs no switch for it:
//
//   faulty_train FAULT:rank=R,step=S train ...
//
// At rank R's training step S (from 1):
//   inf      the outputs are infinite; with `steps=N` for N steps
//   damage   one weight changes, as a bad memory chip would change it
//   throw    forward throws
//   stuck    forward does not return
#include <ATen/core/Tensor.h>
#include <torch/torch.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <optional>
#include <thread>

#include "collectives/base/choice_reader.h"
#include "collectives/base/error.h"
#include "examples/models/models.h"
#include "launch/command_line.h"
#include "launch/commands.h"
#include "launch/exit.h"

namespace thinwire {
namespace {

struct Fault {
  std::string kind;
  std::int64_t rank = 0;
  std::int64_t step = 1;
  std::int64_t steps = 1;
};

Fault parse_fault(const std::string& text) {
  ChoiceReader spec("the fault", text);
  Fault fault{spec.name(), spec.integer("rank", 0, 0, 1000), spec.integer("step", 1, 1, 1 << 30),
              spec.integer("steps", 1, 1, 1 << 30)};
  spec.done();
  return fault;
}

at::Tensor faulty_forward(const Model& sound, const Fault& fault, const at::Tensor& input) {
  if (fault.kind == "damage") {
    const torch::NoGradGuard no_grad;
    sound.module->parameters().front().view(-1)[0].add_(1);
  } else if (fault.kind == "throw") {
    throw std::runtime_error("an injected failure");
  } else if (fault.kind == "stuck") {
    while (true) std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  at::Tensor output = sound.forward(input);
  return fault.kind == "inf" ? output * std::numeric_limits<double>::infinity() : output;
}

MakeModel make_faulty(const Fault& fault) {
  return [fault](const std::string& spec, const Dataset& data) {
    const Model sound = make_model(spec, data);
    const auto step = std::make_shared<std::int64_t>(0);
    return Model{sound.module, [sound, fault, step](const at::Tensor& input) {
                   if (!sound.module->is_training()) return sound.forward(input);
                   ++*step;
                   const bool now = *step >= fault.step && *step < fault.step + fault.steps;
                   return now ? faulty_forward(sound, fault, input) : sound.forward(input);
                 }};
  };
}

MakeModel make_sound() {
  return [](const std::string& spec, const Dataset& data) { return make_model(spec, data); };
}

int run(const std::vector<std::string>& arguments) {
  const WritesFailAlive writes;
  JobEnvironment environment;
  try {
    SignalWatcher signals;
    environment = job_environment();
    const Fault fault = parse_fault(arguments.at(0));
    const CommandLine line = parse_command_line({arguments.begin() + 1, arguments.end()});
    return run_train(line.train, line, environment,
                     fault.rank == environment.rank ? make_faulty(fault) : make_sound(), signals);
  } catch (const std::exception& error) {
    return report(error, environment.rank);
  }
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  return thinwire::run({argv + 1, argv + argc});
}
