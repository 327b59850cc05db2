#!/usr/bin/env bash
# Builds and runs the overlap benchmark, dense and with 1-bit gradients: over a simulated wire, or,
# with `lab` and as root, over the network lab's: dense, 2 and 4 ranks, at a rate at which backward
# takes at most a third of the time that communication takes.
#
#   tests/bench/overlap.sh [BUILD_FOLDER]
#   tests/bench/overlap.sh lab [BUILD_FOLDER] [RATE]
set -euo pipefail
cd "$(dirname "$0")/../.."
if [[ ${1:-} == lab ]]; then
  build=${2:-build}
  rate=${3:-200mbit}
  ./build.sh "$build" bench_overlap
  for ranks in 2 4; do
    tests/bench/netlab --ranks "$ranks" --rate "$rate" -- "$build/tests/bench/overlap" none mpi
  done
  exit
fi
build=${1:-build}
./build.sh "$build" bench_overlap
"$build/tests/bench/overlap"
"$build/tests/bench/overlap" sign
