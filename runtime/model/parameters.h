// A model's parameters as state of a run.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "collectives/base/state.h"
#include "collectives/communicator.h"

namespace torch::nn {
class Module;
}  // namespace torch::nn

namespace thinwire {

// A leaf tensor under its stable name.
struct Parameter {
  std::string name;
  at::Tensor tensor;
};

// The parameters of a module under their names; a tied one once, under its first name.
std::vector<Parameter> parameters_of(const torch::nn::Module& module);

// How many numbers these are.
std::int64_t values_of(const torch::nn::Module& module);

// Shows every parameter as replicated state under its name.
void visit_parameters(const std::vector<Parameter>& parameters, StateVisitor& visitor);

// Moves parameters and buffers to `device`. Call it before they are laid out into buckets.
void move_to(torch::nn::Module& module, at::Device device);

// The hash of every parameter's bytes, in the order given.
std::uint64_t hash_parameters(const std::vector<Parameter>& parameters);

// Collective: throws `RanksDisagree`, naming the first parameter that differs and the ranks that
// differ from most of the others, on every rank.
void require_equal_replicas(Communicator& communicator, const std::vector<Parameter>& parameters);

// Collective: every rank's tensors become root's.
void broadcast_tensors(Communicator& communicator, const std::vector<at::Tensor>& tensors,
                       int root);

}  // namespace thinwire
