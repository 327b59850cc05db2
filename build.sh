#!/usr/bin/env bash
# Configures (once, and again for an option) and builds. Needs what setup.sh brings.
#
#   ./build.sh [BUILD_FOLDER] [-DNAME=VALUE...] [TARGETS]
set -euo pipefail
cd "$(dirname "$0")"
build=${1:-build}
shift || true
options=()
while [[ ${1:-} == -D* ]]; do
  options+=("$1")
  shift
done
# What run.sh leaves out for time belongs to everything.
if (($# == 0)) && grep -qs '^THINWIRE_CUDA:STRING=IF_GPU$' "$build/CMakeCache.txt"; then
  options=(-DTHINWIRE_CUDA=AUTO "${options[@]}")
fi
if ((${#options[@]})) || [[ ! -f $build/build.ninja ]]; then
  cmake -S . -B "$build" -G Ninja "${options[@]}"
fi
# A file that includes libtorch needs a gigabyte: no more jobs than that leaves room for.
memory=$(awk '/MemAvailable/ {print int($2 / 1500000)}' /proc/meminfo)
jobs=$(nproc)
((jobs > memory)) && jobs=$((memory > 0 ? memory : 1))
export NINJA_STATUS=${NINJA_STATUS:-'[%f of %t, %e s] '}
cmake --build "$build" --parallel "$jobs" ${@:+--target "$@"}
