// Writes a small Gpt's weights, tokens, logits and gradients, for gpt_reference.py, which computes
// the same in Python. Usage: gpt_tool float32|float64 FILE
#include <torch/torch.h>

#include <cstdio>
#include <exception>
#include <string>

#include "examples/models/initialize.h"
#include "examples/models/models.h"
#include "runtime/checkpoint/file_system.h"
#include "runtime/checkpoint/safetensors.h"

namespace thinwire {
namespace {

void run(at::ScalarType dtype, const std::string& path) {
  const Model model = make_model("gpt:layers=3,heads=4,width=32,dropout=0", {24}, 50);
  initialize_parameters(*model.module, 7);
  model.module->to(dtype);
  // At the initial scale the blocks hardly matter.
  const torch::NoGradGuard no_grad;
  for (auto& parameter : model.module->parameters()) parameter.mul_(5);

  const at::Tensor tokens = (torch::arange(5 * 20) * 37 + 11).remainder(50).view({5, 20});
  std::vector<NamedTensor> tensors{{"tokens", tokens}};
  {
    const torch::AutoGradMode with_grad(true);
    const at::Tensor logits = model.forward(tokens);
    tensors.push_back({"logits", logits.detach()});
    // Next token: the last place of each row learns the first.
    torch::cross_entropy_loss(logits.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward();
  }
  for (const auto& item : model.module->named_parameters()) {
    tensors.push_back({"weight/" + item.key(), item.value().detach()});
    tensors.push_back({"gradient/" + item.key(), item.value().grad()});
  }
  PosixFileSystem files;
  const auto file = files.create(path);
  file->write(write_safetensors(tensors, {}));
  file->close();
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  try {
    if (argc != 3) return 2;
    thinwire::run(std::string(argv[1]) == "float64" ? at::kDouble : at::kFloat, argv[2]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
