#!/usr/bin/env bash
# Builds and runs the unit and threads tests under sanitizers, in build folders of their own.
#
#   tests/sanitize.sh address    AddressSanitizer and UndefinedBehaviorSanitizer
#   tests/sanitize.sh thread     ThreadSanitizer: the threads backend and the communication thread
#                                with synthetic gradients (libtorch itself is not instrumented)
set -euo pipefail
cd "$(dirname "$0")/.."
torch=$(echo "$PWD"/build/venv/lib/python3*/site-packages/torch)
case ${1:-} in
  address)
    build='build-asan'
    preset=asan
    tests=(base_test threads_test sockets_test compression_test codec_test power_sgd_test
           combinations_test several_threads_test optimizers_test
           step_test buckets_test trainer_test lifeline_test flight_recorder_test
           file_system_test safetensors_test checkpoint_test test_data)
    # libtorch keeps what it allocated for the whole process.
    export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
    ;;
  thread)
    build='build-tsan'
    preset=tsan
    tests=(base_test threads_test sockets_test compression_test combinations_test power_sgd_test
           several_threads_test step_test lifeline_test flight_recorder_test)
    export TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp halt_on_error=1"
    ;;
  *)
    echo "usage: tests/sanitize.sh address|thread" >&2
    exit 2
    ;;
esac
cmake --preset "$preset" -DTHINWIRE_TORCH="$torch" >/dev/null
if grep -q '^THINWIRE_NCCL_LIBRARY:FILEPATH=/' "$build/CMakeCache.txt"; then
  tests+=(nccl_simulated_test)
fi
./build.sh "$build" "${tests[@]}"
names=$(IFS='|'; echo "${tests[*]}")
ctest --test-dir "$build" --output-on-failure --no-tests=error -R "^($names)\$"
