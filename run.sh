#!/usr/bin/env bash
# Set-up, build, main job: 4 ranks in one process train a convnet on Fashion-MNIST, once dense and
# once with 1-bit gradients, and a table compares them.
#
#   ./run.sh [-DNAME=VALUE...]   options for cmake, e.g. -DTHINWIRE_CUDA=ON
#   BUILD=folder                 the build folder; default: build
set -euo pipefail
cd "$(dirname "$0")"
build=${BUILD:-build}
options=("$@")
# A new folder gets no code for GPUs where there is none. It is compiled with the tests.
[[ -f $build/CMakeCache.txt ]] || options=(-DTHINWIRE_CUDA=IF_GPU "${options[@]}")
echo "== set-up: packages, and libtorch in $build/venv"
./setup.sh "$build"
echo "== build of $build/thinwire: some minutes the first time; [files compiled of all, seconds]"
./build.sh "$build" "${options[@]}" thinwire_cli

# What both runs share; only the compressor differs.
job=(--ranks 4 --config examples/fashion-mnist.ini)
for run in dense 1-bit; do
  compressor=none
  [[ $run == 1-bit ]] && compressor=sign
  rm -rf "runs/$run"
  echo "== $run"
  "$build/thinwire" train "${job[@]}" --compressor "$compressor" --output "runs/$run"
done
python3 examples/compare_runs.py runs/dense runs/1-bit
