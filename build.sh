#!/usr/bin/env bash
# Configures (once) and builds. Needs what setup.sh brings.
#
#   ./build.sh [BUILD_FOLDER] [TARGETS]
set -euo pipefail
cd "$(dirname "$0")"
build=${1:-build}
shift || true
[[ -f $build/build.ninja ]] || cmake -S . -B "$build" -G Ninja
# A file that includes libtorch needs a gigabyte: no more jobs than that leaves room for.
memory=$(awk '/MemAvailable/ {print int($2 / 1500000)}' /proc/meminfo)
jobs=$(nproc)
((jobs > memory)) && jobs=$((memory > 0 ? memory : 1))
cmake --build "$build" --parallel "$jobs" ${@:+--target "$@"}
