"""What the tests of the command share: running it, alone and under mpirun."""

import json
import os
import pathlib
import shutil
import signal
import subprocess

SMALL = ["--model", "mlp:hidden=24", "--data", "synthetic:samples=256,test_samples=64,size=8",
         "--batch-size", "8", "--lr", "0.05", "--momentum", "0", "--report-every", "10"]


# What started the tests may ignore signals (nohup, a shell's &), and `thinwire train` then does too.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
               signal.SIGXCPU):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

# What launchers set: a test that runs inside a job is not one of its ranks.
LAUNCHERS = ("OMPI_COMM_", "PMI", "SLURM_", "TORCHELASTIC_", "RANK", "WORLD_SIZE", "LOCAL_RANK",
             "LOCAL_WORLD_SIZE", "MASTER_", "THINWIRE_")


def environment(**variables):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
    return {**clean, **variables}


def mpi_environment():
    return environment(
        OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
        OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_hwloc_base_binding_policy="none",
        OMPI_MCA_btl_vader_single_copy_mechanism="none", OMPI_MCA_mpi_yield_when_idle="1",
        ASAN_OPTIONS="detect_leaks=0")


def mpirun():
    """The launcher, or None where there is none."""
    return shutil.which("mpirun")


def metrics(folder):
    return [json.loads(line)
            for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()]


def end_of(folder):
    end = metrics(folder)[-1]
    assert end.get("event") == "end", end
    return end


class Program:
    def __init__(self, path):
        self.path = path

    def run(self, *arguments, timeout=120, **variables):
        return subprocess.run([self.path, *map(str, arguments)], env=environment(**variables),
                              text=True, capture_output=True, timeout=timeout, check=False)

    def mpirun(self, ranks, *arguments, timeout=120):
        command = [mpirun(), "-np", str(ranks), self.path, *map(str, arguments)]
        return subprocess.run(command, env=mpi_environment(), text=True, capture_output=True,
                              timeout=timeout, check=False)

    def start(self, *arguments, **variables):
        return subprocess.Popen([self.path, *map(str, arguments)], env=environment(**variables),
                                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run_where_nobody_reads(self, *arguments):
        """The command once for each stdout that cannot be written: a device that is full, a pipe
        whose reader has gone, a descriptor that the parent has closed. Yields name and result."""
        reader, writer = os.pipe()
        os.close(reader)
        with open("/dev/full", "w", encoding="utf-8") as full, os.fdopen(writer, "w") as pipe:
            for name, line, stdout in (("full", '"$@"', full), ("pipe", '"$@"', pipe),
                                       ("closed", '"$@" >&-', None)):
                yield name, subprocess.run(
                    ["sh", "-c", line, "sh", self.path, *map(str, arguments)], env=environment(),
                    stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
