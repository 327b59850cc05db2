#!/usr/bin/env bash
# Builds and runs the overlap benchmark, dense and with 1-bit gradients.
#
#   tests/bench/overlap.sh [BUILD_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build}
./build.sh "$build" bench_overlap
"$build/tests/bench/overlap"
"$build/tests/bench/overlap" sign
