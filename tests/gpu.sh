#!/usr/bin/env bash
# What only a GPU can show: builds; kernels against their host instance, bit for bit, with the bytes
# per second that they reach; every combination of codec, feedback and exchange against the host;
# the conformance suite on real NCCL; training on the GPU, alone and with ranks that share it. Ends
# with a table. Where there is no GPU it says so and passes.
#
#   tests/gpu.sh [BUILD_FOLDER]      default: build
#   CMAKE_ARGUMENTS="..."            for the first configuration, e.g. -DTHINWIRE_CUDA_ARCHITECTURES=90
#   PREBUILT=1                       BUILD_FOLDER has programs that were built elsewhere: build nothing
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
build=${1:-build}
if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "gpu: no GPU here"
  exit 0
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [[ -z ${PREBUILT:-} ]]; then
  if [[ ! -f $build/build.ninja ]]; then
    read -ra arguments <<<"${CMAKE_ARGUMENTS:-}"
    cmake -S . -B "$build" -G Ninja -DTHINWIRE_CUDA=ON "${arguments[@]}" >/dev/null || exit 1
  fi
  targets=(thinwire_cli kernels_gpu_test reducers_gpu_test)
  ninja -C "$build" -t targets all | grep -q '^nccl_gpu_test:' && targets+=(nccl_gpu_test)
  ./build.sh "$build" "${targets[@]}" >"$work/build.log" 2>&1 || {
    tail -n 30 "$work/build.log"
    exit 1
  }
fi

table=()
failed=0
# step NAME COMMAND...: runs it for two minutes at most, keeps its last line.
step() {
  local name=$1 started=$SECONDS result=passed
  shift
  echo "== $name"
  timeout --kill-after=10 120 "$@" 2>&1 | tee "$work/log" || result=FAILED
  [[ $result == passed ]] || failed=1
  table+=("$(printf '%-28s %-7s %4d s  %s' "$name" "$result" $((SECONDS - started)) \
    "$(grep -v '^ *$' "$work/log" | tail -n 1 | cut -c 1-110)")")
}

step "kernels" "$build/tests/gpu/kernels_gpu_test"
step "reducers" "$build/tests/gpu/reducers_gpu_test"
if [[ -x $build/tests/gpu/nccl_gpu_test ]]; then
  step "nccl conformance" "$build/tests/gpu/nccl_gpu_test" --gtest_brief=1
fi
job=(--model convnet --data synthetic --steps 300 --batch-size 64 --report-every 100)
for compressor in none sign quantize:bits=4 topk:density=0.01 powersgd:rank=4; do
  step "train $compressor, cpu" "$build/thinwire" train "${job[@]}" --lr 0.1 --compressor $compressor \
    --device cpu --output "$work/cpu-$compressor"
  step "train $compressor, cuda" "$build/thinwire" train "${job[@]}" --lr 0.1 --compressor $compressor \
    --device cuda --output "$work/cuda-$compressor"
  step "train $compressor, 2 on 1 GPU" "$build/thinwire" train "${job[@]}" --lr 0.1 --ranks 2 \
    --share-device --device cuda --compressor $compressor --output "$work/shared-$compressor"
done
step "train adamw bf16, cuda" "$build/thinwire" train "${job[@]}" --optimizer adamw --lr 0.001 \
  --device cuda --precision bf16 --output "$work/bf16"
job=(--model convnet --data synthetic --compressor sign --device cuda --output "$work/resume")
step "train, to be resumed" "$build/thinwire" train "${job[@]}" --steps 100
step "resume, cuda" "$build/thinwire" train "${job[@]}" --steps 200 --resume auto

echo
printf '%s\n' "${table[@]}"
exit $failed
