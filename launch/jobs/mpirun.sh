#!/usr/bin/env bash
# Trains with mpirun, from the newest checkpoint if there is one. Arguments are those of
# `thinwire train`:
#
#   RANKS=4 launch/jobs/mpirun.sh --compressor sign --epochs 4 --output runs/a
#
#   RANKS=N             how many; default: what mpirun makes of the allocation or the host
#   THINWIRE=path       the program; default: build/thinwire
#   MPIRUN=arguments    more for mpirun, e.g. MPIRUN="--hostfile hosts --map-by ppr:4:node"
#
# SIGUSR1, SIGUSR2, SIGXCPU, SIGTERM, SIGHUP and Ctrl-C ask for a checkpoint and a stop: exit code 75,
# and the same command goes on from there. All become SIGUSR1 for mpirun, which passes it on; on the
# last three mpirun would kill its ranks after two seconds. Also inside a batch job: sbatch -n 4 --signal=B:USR1@120 ...
set -euo pipefail

read -ra more <<<"${MPIRUN:-}"
if [[ -n ${RANKS:-} ]]; then
  more+=(-np "$RANKS")
fi
# A session of its own: Ctrl-C reaches this script only.
setsid mpirun "${more[@]}" "${THINWIRE:-build/thinwire}" train --resume auto "$@" &
job=$!
interrupted=no
trap 'interrupted=yes; kill -USR1 "$job" 2>/dev/null || true' USR1 USR2 XCPU TERM HUP INT

# A trap ends `wait` early.
while true; do
  interrupted=no
  code=0
  wait "$job" || code=$?
  [[ $interrupted == yes ]] || break
done
exit "$code"
