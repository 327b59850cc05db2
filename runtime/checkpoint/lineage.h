// Which checkpoints a run may go on from.
#pragma once

#include <map>
#include <string>

#include "runtime/checkpoint/manifest.h"

namespace thinwire {

// What a checkpoint and the run that goes on from it must have in common: names and values as a
// manifest's `info` has them.
using Lineage = std::map<std::string, std::string>;

// "was made with seed 1, this run has 2" where the checkpoint was made with another seed, other
// data or another partition of them (its position in the data would then mean other samples), with
// other parameters, or with another kind of model or optimizer. Entries that the manifest lacks are
// not compared. Empty if nothing differs.
std::string describe_other_lineage(const Manifest& manifest, const Lineage& lineage);

}  // namespace thinwire
