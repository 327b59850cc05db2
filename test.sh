#!/usr/bin/env bash
# Set-up, build, all tests. The last lines are ctest's.
#
#   ./test.sh [CTEST_ARGUMENTS]    e.g. ./test.sh -R checkpoint
#   BUILD=folder                   the build folder; default: build
set -euo pipefail
cd "$(dirname "$0")"
build=${BUILD:-build}
./setup.sh "$build"
./build.sh "$build"
# Three at a time, also on two cores: many wait most of the time.
ctest --test-dir "$build" --output-on-failure --no-tests=error -j3 "$@"
