#!/usr/bin/env bash
# Runs a command inside a Slurm cluster of this one machine, which starts before it and ends with it.
# Needs root, and Debian's packages slurmctld, slurmd, slurm-client and munge; no systemd. All files
# are in a temporary folder, all ports are free ones, so several may run at a time.
#
#   tests/launch/slurm_one_node.sh srun -n 2 build/thinwire info
#
# Exit code: the command's; 77 where such a cluster cannot be had (ctest counts it as skipped).
set -euo pipefail

skip() {
  echo "slurm_one_node: $1" >&2
  exit 77
}
[[ $# -gt 0 ]] || { echo "usage: tests/launch/slurm_one_node.sh COMMAND..." >&2; exit 2; }
[[ $(id -u) == 0 ]] || skip "Slurm's daemons need root; run it as root"
for program in munged slurmctld slurmd srun; do
  command -v "$program" >/dev/null || skip "$program is not installed; run ./setup.sh"
done

folder=$(mktemp -d /tmp/thinwire-slurm-XXXXXX)
chmod 755 "$folder"
mkdir "$folder/state" "$folder/spool"
export SLURM_CONF=$folder/slurm.conf
daemons=()
command=

# Slurm's step daemons outlive the node's daemon; they carry the cluster's name in their environment.
step_daemons() {
  local pid
  for pid in $(pgrep -x slurmstepd); do
    if grep -qzxF "SLURM_CONF=$SLURM_CONF" "/proc/$pid/environ" 2>/dev/null; then
      echo "$pid"
    fi
  done
}

tear_down() {
  [[ -z $command ]] || kill "$command" 2>/dev/null || true
  scancel --user=root --quiet 2>/dev/null || true
  for _ in {1..50}; do
    [[ -n $(squeue --noheader 2>/dev/null) ]] || break
    sleep 0.1
  done
  local pid
  for pid in $(step_daemons); do kill -KILL "$pid" 2>/dev/null || true; done
  # The last one first: Slurm's daemons want munge to the end.
  for ((i = ${#daemons[@]} - 1; i >= 0; --i)); do
    kill "${daemons[i]}" 2>/dev/null || true
    wait "${daemons[i]}" 2>/dev/null || true
  done
  rm -rf "$folder"
}
trap tear_down EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

read -r controller_port node_port < <(python3 - <<'PORTS'
import socket
sockets = [socket.socket() for _ in range(2)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PORTS
)
host=$(hostname -s)
cat >"$SLURM_CONF" <<CONF
ClusterName=thinwire
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2
# More tasks than cores: tests want ranks, not speed.
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 400 "$folder/munge.key"

# --force: munge finds /tmp too open for its files.
munged --force --foreground --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
  --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" \
  >"$folder/munged.out" 2>&1 &
daemons+=($!)
for _ in {1..300}; do
  [[ -S $folder/munge.socket ]] && break
  sleep 0.1
done
slurmctld -D -i >"$folder/slurmctld.out" 2>&1 &
daemons+=($!)
slurmd -D >"$folder/slurmd.out" 2>&1 &
daemons+=($!)

for _ in {1..300}; do
  state=$(sinfo --noheader --format=%T 2>/dev/null || true)
  [[ $state == idle ]] && break
  sleep 0.2
done
if [[ $state != idle ]]; then
  tail -n 20 "$folder"/*.log "$folder"/*.out >&2
  echo "slurm_one_node: the node is '$state' after a minute, not idle; see the logs above" >&2
  exit 1
fi
# In the background, so that a signal ends it at once.
"$@" &
command=$!
wait "$command"
