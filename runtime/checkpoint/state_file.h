// How the files of a checkpoint hold state.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "collectives/base/state.h"

namespace thinwire {

// Lists what it is shown. Throws `Bug` for a name shown twice (ranged: with the same range) and for
// a ranged tensor that is not flat with end - begin elements.
class StateCollector : public StateVisitor {
 public:
  void tensor(const StateEntry& entry) override;
  void counter(const std::string& name, std::int64_t& value) override;

  // The tensors alias their owners' memory.
  const std::vector<StateEntry>& entries() const { return entries_; }
  const std::map<std::string, std::int64_t>& counters() const { return counters_; }

 private:
  std::vector<StateEntry> entries_;
  std::set<std::string> keys_;
  std::map<std::string, std::int64_t> counters_;
};

// The entry's name in a file: its name, for `ranged` followed by "[begin:end]".
std::string state_key(const StateEntry& entry);

// The bytes of a safetensors file. Its metadata have an entry "state:<key>" for each tensor that is
// not replicated: "averaged", or "ranged <begin> <end> <name>".
std::string write_state(const std::vector<StateEntry>& entries);

// Throws `DataError` naming `place` (the file) and the tensor.
std::vector<StateEntry> read_state(std::string_view bytes, const std::string& place);

}  // namespace thinwire
