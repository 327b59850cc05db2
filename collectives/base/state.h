// How everything that has state shows it: checkpoint, hash check and memory report are visitors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace thinwire {

// How a piece of state is spread over the ranks, hence what becomes of it at another world size.
enum class StateKind {
  replicated,  // the same bits on every rank
  averaged,    // each rank has its own; at another world size every rank gets the mean
  ranged,      // each rank holds [begin, end) of one flat vector; ranges are re-cut freely
};

// One tensor of state. The tensor aliases the owner's memory: a visitor reads it or fills it in
// place.
struct StateEntry {
  std::string name;  // stable and unique, e.g. "residual/conv1.weight"
  StateKind kind = StateKind::replicated;
  at::Tensor tensor;       // for `ranged`: flat, `end - begin` elements
  std::int64_t begin = 0;  // `ranged` only: elements, within the vector called `name`
  std::int64_t end = 0;    // `ranged` only
};

class StateVisitor {
 public:
  virtual ~StateVisitor() = default;
  virtual void tensor(const StateEntry& entry) = 0;
  // A replicated integer (a step, a position, a counter).
  virtual void counter(const std::string& name, std::int64_t& value) = 0;
};

}  // namespace thinwire
