// The one table of what `thinwire train` can be told: parsing, help, --print-config and the
// comparison of ranks all read it, so a new option is one line in the .cpp and a field.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "runtime/trainer/options.h"

namespace thinwire {

// Everything that a config file can hold: the training options, and how the job is set up.
struct TrainRequest : TrainOptions {
  std::int64_t ranks = 1;        // threads of this process
  std::string backend = "auto";  // auto | threads | mpi | sockets
  std::string device = "auto";   // auto | cpu | cuda
  std::string job_id;            // tells jobs apart that meet at the same place
  bool share_device = false;     // may ranks of a host compute on the same device?
  std::int64_t threads = 0;      // of each rank's forward and backward; 0: its share of the cores
  std::string exchange_threads = "auto";  // of each rank's exchange and update: auto | N
  std::string kernels = "auto";           // auto | a form of `info --kernels`
};

// One kind of value each: where it is stored and what may be stored there.
struct IntegerField {
  std::int64_t TrainRequest::*member;
  std::int64_t low;
  std::int64_t high;
};
struct SeedField {
  std::uint64_t TrainRequest::*member;  // 0 to 2^63 - 1
};
struct NumberField {
  double TrainRequest::*member;
  double low;
  double high;
};
struct WordField {
  std::string TrainRequest::*member;  // never empty
};
struct TextField {
  std::string TrainRequest::*member;  // may be empty
};
struct SwitchField {
  bool TrainRequest::*member;  // a flag without a value, for true; true or false in a file
};

// One flag, which is also one key of a config file.
struct Option {
  using Field =
      std::variant<IntegerField, SeedField, NumberField, WordField, TextField, SwitchField>;

  std::string name;   // without dashes in front
  std::string group;  // options of a group are neighbours
  std::string help;   // what it is, with its unit
  Field field;

  // Stores `text`. `place` names the flag or the line for messages. Throws `UsageError` with place,
  // value and allowed range.
  void set(TrainRequest& request, const std::string& place, const std::string& text) const;
  // The stored value, such that `set` gives back the same one.
  std::string get(const TrainRequest& request) const;
  // "1 to 1024"; empty for texts.
  std::string range() const;
  bool is_switch() const { return std::holds_alternative<SwitchField>(field); }
  // What stands for a value in the help, e.g. "N".
  std::string placeholder() const;
};

std::vector<Option> options_table();

}  // namespace thinwire
