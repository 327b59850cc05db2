#!/usr/bin/env bash
# Trains under Slurm until it is done, over as many time limits as that takes. Options of sbatch come
# before the script, those of `thinwire train` behind it:
#
#   sbatch -N 2 --ntasks-per-node 4 --time 4:00:00 launch/jobs/slurm.sh --epochs 90 --output runs/a
#
#   THINWIRE=path       the program; default: build/thinwire in the folder of submission
#   SRUN=arguments      more for srun, e.g. SRUN=--mpi=pmix for MPI instead of sockets
#
# Two minutes before the time limit (--signal below) the ranks write a checkpoint and stop with exit
# code 75; the job queues again and goes on from there. The same by hand, e.g. to make room:
#
#   scancel --batch --signal=USR1 JOB
#
# scancel without a signal ends the job for good.
#SBATCH --job-name=thinwire
#SBATCH --ntasks=4
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

read -ra more <<<"${SRUN:-}"
srun "${more[@]}" "${THINWIRE:-build/thinwire}" train --resume auto "$@" &
step=$!

# The signal reaches this script only, and srun passes it on to all ranks.
again=no
interrupted=no
trap 'again=yes; interrupted=yes; kill -USR1 "$step" 2>/dev/null || true' USR1

# A trap ends `wait` early.
while true; do
  interrupted=no
  code=0
  wait "$step" || code=$?
  [[ $interrupted == yes ]] || break
done

if [[ $again == yes && $code == 75 ]]; then
  echo "stopped on request: job $SLURM_JOB_ID queues again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
