// "name:key=value,key=value": how a choice with options is written on a command line or in a config
// file, and the help that a mistyped word gets.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace thinwire {

// Reads one choice. Each getter consumes its key; `done()` refuses what is left over.
// Everything here throws `UsageError` with the place and the nearest known word.
class ChoiceReader {
 public:
  // `what` names the option for messages, e.g. "--compressor". A value may hold commas when the
  // next item has no '=': "mlp:hidden=64,32" is one key.
  ChoiceReader(std::string what, std::string_view text);

  const std::string& name() const { return name_; }
  std::int64_t integer(const std::string& key, std::int64_t fallback, std::int64_t low,
                       std::int64_t high);
  double number(const std::string& key, double fallback, double low, double high);
  std::string text(const std::string& key, const std::string& fallback);
  // At most 1000 of them.
  std::vector<std::int64_t> integers(const std::string& key,
                                     const std::vector<std::int64_t>& fallback, std::int64_t low,
                                     std::int64_t high);
  // Throws unless every key was asked for.
  void done() const;
  // Throws: `name()` is none of `known`.
  [[noreturn]] void unknown_name(const std::vector<std::string>& known) const;

 private:
  std::string take(const std::string& key);

  std::string what_;
  std::string name_;
  std::map<std::string, std::string> items_;
  std::vector<std::string> asked_;
};

// The member of `known` with the smallest edit distance to `word`; empty if none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& known);

// A question about the known word that `word` abbreviates, or else that is nearest to it, with a
// blank behind it; empty if there is none.
std::string did_you_mean(std::string_view word, const std::vector<std::string>& known);

// Whole-string parses; throw `UsageError` naming `what` and the accepted range.
std::int64_t parse_integer(const std::string& what, const std::string& text, std::int64_t low,
                           std::int64_t high);
double parse_number(const std::string& what, const std::string& text, double low, double high);

}  // namespace thinwire
