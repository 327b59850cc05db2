"""Two runs in one folder: one is refused, the other whole. And the folder of a killed run is free at
once.

    folders.py THINWIRE [TIMES]

In turn over threads, under mpirun, and over sockets, started at random distances.
"""

import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "launch"))
from support import Program, end_of, metrics, mpi_environment, mpirun  # noqa: E402

PROGRAM = Program(sys.argv[1])
TIMES = int(sys.argv[2]) if len(sys.argv) > 2 else 2
JOB = ["--model", "mlp:hidden=24", "--data", "synthetic:samples=256,test_samples=64,size=8",
       "--batch-size", "8", "--lr", "0.05", "--momentum", "0", "--report-every", "1",
       "--compressor", "sign", "--checkpoint-every", "10"]
HAS_MPI = mpirun() is not None and "Open MPI" in PROGRAM.run("info").stdout


class Run:
    """One run of two ranks, as however many processes."""

    def __init__(self, kind, folder, seed, steps=1000000):
        arguments = ["train", *JOB, "--seed", str(seed), "--steps", str(steps), "--output",
                     str(folder)]
        self.kind, self.seed = kind, seed
        pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if kind == "mpi":
            self.processes = [subprocess.Popen(
                [mpirun(), "-np", "2", PROGRAM.path, *arguments], env=mpi_environment(), **pipes)]
        elif kind == "sockets":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            self.processes = [
                PROGRAM.start(*arguments, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
                              LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                for rank in range(2)]
        else:
            self.processes = [PROGRAM.start(*arguments, "--ranks", "2")]

    def has_ended(self):
        return all(process.poll() is not None for process in self.processes)

    def signal(self, number):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def result(self):
        """Exit codes, and all that was said."""
        text = [part for process in self.processes for part in process.communicate(timeout=120)]
        return [process.returncode for process in self.processes], "".join(text)


def wait_until(condition, what, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def lines_of(folder):
    try:
        return metrics(folder)
    except (OSError, ValueError):
        return []


def require_whole(folder, run, text):
    """What the run left is that of one that had the folder for itself."""
    end = end_of(folder)
    steps = [line["step"] for line in metrics(folder)]
    assert steps == [*range(1, end["step"] + 1), end["step"]], steps
    checked = PROGRAM.run("verify", end["checkpoint"])
    assert checked.returncode == 0, checked.stderr
    alone = pathlib.Path(f"{folder}-alone")
    result = PROGRAM.run("train", *JOB, "--seed", run.seed, "--steps", end["step"], "--ranks", 2,
                         "--output", alone)
    assert result.returncode == 0, result.stderr
    assert end_of(alone)["parameters_hash"] == end["parameters_hash"], text


def two_runs(folder, kinds, distance):
    runs = [Run(kinds[0], folder, 1)]
    time.sleep(distance)
    runs.append(Run(kinds[1], folder, 2))
    wait_until(lambda: any(run.has_ended() for run in runs), "nobody was refused")
    refused = next(run for run in runs if run.has_ended())
    other = next(run for run in runs if run is not refused)
    codes, text = refused.result()
    assert codes == [73] * len(codes), f"{codes}\n{text}"
    assert f"'{folder}' belongs to another run: process " in text, text
    assert ", since 20" in text and "bug:" not in text, text
    wait_until(lambda: len(lines_of(folder)) > 12, "the other does not train")
    other.signal(signal.SIGUSR1)
    codes, text = other.result()
    assert codes == [75] * len(codes), f"{codes}\n{text}"
    assert not list(folder.glob("earlier-*")) and not (folder / "run.lock").exists()
    require_whole(folder, other, text)


def killed_run(folder, kind):
    run = Run(kind, folder, 1)
    wait_until(lambda: lines_of(folder), "it does not train")
    run.signal(signal.SIGKILL)
    run.result()
    assert (folder / "run.lock").exists()
    after = Run(kind, folder, 2, steps=20)
    codes, text = after.result()
    assert codes == [0] * len(codes), f"{codes}\n{text}"
    assert "sign of life" not in text, text
    assert (folder / "earlier-1/metrics.jsonl").exists()
    require_whole(folder, after, text)


def main():
    draw = random.Random(17)
    base = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-folders-"))
    pairs = [("threads", "threads"), ("sockets", "threads"), ("threads", "sockets")]
    if HAS_MPI:
        pairs += [("mpi", "threads"), ("mpi", "sockets")]
    for number in range(TIMES):
        kinds = pairs[number % len(pairs)]
        folder = base / f"two-{number}"
        two_runs(folder, kinds, draw.choice([0, draw.uniform(0, 0.5)]))
        shutil.rmtree(folder)
    for kind in ("threads", "sockets"):
        killed_run(base / f"killed-{kind}", kind)
    print(f"{TIMES} pairs of runs in one folder: each time one was refused and the other whole; the "
          "folder of a killed run was free at once, 2 times")
    shutil.rmtree(base)


main()
