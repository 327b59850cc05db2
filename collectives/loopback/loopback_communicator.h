// A group of ranks of which only this one exists: what computing costs without a network.
#pragma once

#include <chrono>
#include <memory>

#include "collectives/communicator.h"

namespace thinwire {

// Behaves as rank `rank` of `size` ranks that answer at once, and moves no bytes: the others' part
// of a result is made of what this rank gave, so that payloads stay payloads. Works claim the bytes
// that a real backend would send. Copies, as far as there are any, are made in `wait`.
//
//   all_reduce, broadcast   the tensor stays as it is
//   reduce_scatter          this rank's part of its own input
//   all_to_all              every rank sends what this one would send to itself
//   all_gather              where an earlier all_to_all had an input of the same size, its input:
//                           the owners of a two-stage exchange reply with what they were sent;
//                           else every rank sends what this one does
//   split                   all ranks gave the same color
std::unique_ptr<Communicator> make_loopback_communicator(
    int rank, int size, std::chrono::milliseconds timeout = std::chrono::minutes(1));

}  // namespace thinwire
