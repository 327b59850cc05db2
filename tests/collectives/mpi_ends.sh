#!/usr/bin/env bash
# A program that catches what ended its group, returns from main and so finalizes MPI: with messages
# in flight it must end with its own exit code and the cause, not with a signal and not by a hang.
#
#   mpi_ends.sh SEEDS mpirun ARGUMENTS...    # ARGUMENTS start mpi_faults
set -u
seeds=$1
shift
for ((seed = 0; seed < seeds; ++seed)); do
  output=$(timeout 60 "$@" end "$seed" 2>&1)
  code=$?
  if [[ $code != 76 ]] || ! grep -q "every rank must call the same" <<<"$output" ||
    grep -qi "signal\|segmentation\|double free" <<<"$output"; then
    echo "seed $seed ended with $code:"
    echo "$output"
    exit 1
  fi
done
