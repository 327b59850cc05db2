// Which compressor to take.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace thinwire {

// One compressor's step, in seconds per step and bytes per rank.
struct Choice {
  std::string compressor;
  double wire_bytes = 0;
  double arithmetic_seconds = 0;
  double network_seconds = 0;    // all exchanges, hidden or not
  double local_seconds = 0;      // a step without a network, as measured
  double predicted_seconds = 0;  // a step, over this network
};

// The index of the choice with the shortest step. Steps that are longer than the shortest by less
// than 3 % count as equally short, because nobody could tell them apart; the first of them wins.
std::size_t best_of(const std::vector<Choice>& choices);

// The bandwidth in bits per second below which `choice` beats `dense`; see break_even_bandwidth.
std::optional<double> break_even(const Choice& choice, const Choice& dense);

// Table and verdict, for people. `dense` is the index of "none".
std::string describe(const std::vector<Choice>& choices, std::size_t dense);

}  // namespace thinwire
