// What the file of an elementwise optimizer is written with. The CUDA compiler reads those files
// too, so everything here is C++17 and none of it includes libtorch.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "collectives/base/choice_reader.h"
#include "collectives/compression/kernels/warp.h"

namespace thinwire {

// What one update needs besides the bucket.
struct StepParameters {
  double lr = 0;              // the schedule's rate for this step
  double gradient_scale = 1;  // multiplies the reduced quantity (clipping); exactly 1: no clipping
  std::int64_t committed_step = 0;  // updates before this one; Adam's t is this plus one
};

// One slice that moves. A table has them by rising offset and changes only when a slice freezes or
// thaws. What changes in every step is handed over beside the table.
struct StepSlice {
  std::int64_t offset = 0;  // elements from the bucket's start
  std::int64_t numel = 0;
  double weight_decay = 0;
  double lr_scale = 1;
};

// What the words of an optimizer use where they do not say otherwise.
struct OptimizerDefaults {
  double momentum = 0;  // only sgd has one
  double weight_decay = 0;
  std::int64_t lr_warmup = 0;    // steps in which the learning rate grows
  std::int64_t total_steps = 0;  // of the run; 0: not known
};

// The `Optimizer` that a rule makes; see optimizers/elementwise.h.
template <typename Rule>
class Elementwise;

// A rule says everything of one optimizer whose update goes element by element. It is a struct with
// these members, in a file of its own, and has a line in optimizers/list.h:
//
//   using Options                      A plain struct with its defaults, weight_decay among them.
//   words(), keys                      Its names behind --optimizer, and what follows such a name.
//   parse(ChoiceReader&, OptimizerDefaults)    Options from words.
//   validate(Options)                  Throws `UsageError` for what cannot be.
//   state(Options)                     The names of the tensors that it keeps beside the weights.
//   using StateCounts                  How many these may be. There is a kernel for each number.
//   using Step, step(Options, StepParameters)
//                                      What all elements share in a step, formed on the host.
//   using Numbers<T>, numbers<T>(Step, StepSlice)
//                                      What the elements of one slice share, in the type T of the
//                                      arithmetic.
//   move(Numbers<T>, T gradient, T& weight, T&... state)
//                                      The formula for one element, once for each number of states.
//
// `numbers` and `move` are THINWIRE_ON_DEVICE: host and GPU are compiled from them and have the
// same bits. `move` is the body of a loop that the compiler vectorises, so it has no branches.
template <int... counts>
using StateCounts = std::integer_sequence<int, counts...>;

// Throws `UsageError` "<what> is <value>; give <range>" unless `holds`.
void require_option(bool holds, const std::string& what, double value, const std::string& range);
// For a number from 0 on.
void require_not_negative(const std::string& what, double value);
// For a share that is kept at each step: from 0, below 1.
void require_below_one(const std::string& what, double value);

// Values of the key "weight_decay", with the range of --weight-decay.
double parse_weight_decay(ChoiceReader& spec, const OptimizerDefaults& defaults);
// A switch: 0 or 1.
bool parse_switch(ChoiceReader& spec, const std::string& key);

}  // namespace thinwire
