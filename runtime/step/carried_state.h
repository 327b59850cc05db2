// State that goes on while parameters are replaced.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "collectives/base/state.h"
#include "collectives/communicator.h"
#include "runtime/model/parameters.h"

namespace thinwire {

// Parameters that take the place of others, as the factors of a layer that becomes two.
struct Replacement {
  std::vector<std::string> removed;  // names; at least one
  std::vector<Parameter> added;      // in the place of the first that is removed
  // What was not sent of those that are removed, by name and in their shapes, as what is to be sent
  // of those that are added. It must be linear in every tensor, as it is applied to each rank's
  // part and to the owners': of W = U V the residual of U is that of W times V^T. What it does not
  // name starts at zero. None: what was not sent is dropped.
  std::function<std::map<std::string, at::Tensor>(const std::map<std::string, at::Tensor>&)>
      project = {};
};

// The names in order once the replacement has been made. Throws `UsageError` for a name that is not
// there, or would be twice.
std::vector<Parameter> replaced(const std::vector<Parameter>& before,
                                const Replacement& replacement);

// Copies of what reducers and optimizers show, which are filled into others that are built for
// other parameters: by name what stays, projected what is replaced. What is new is as it was built.
class CarriedState {
 public:
  using Show = std::function<void(StateVisitor&)>;

  // Collective: what owners have of parts becomes known to all ranks.
  CarriedState(const Show& show, Communicator& communicator);

  // What is removed gives way to its projection. Returns a sentence for each parameter: what became
  // of what was not sent of it. Throws `UsageError` for a projection to anything else than the
  // parameters that are added, in their shapes.
  std::vector<std::string> replace(const Replacement& replacement);
  // Fills what `show` shows.
  void fill(const Show& show) const;

 private:
  // By the kind, which is the first part of a name, and the parameter.
  using OfKind = std::map<std::string, at::Tensor>;

  std::map<std::string, OfKind> kinds_;
  std::map<std::string, std::int64_t> counters_;
};

}  // namespace thinwire
