"""Two runs in one folder: one is refused, the other whole. The folder of a killed run is free at
once. A folder that is removed under a run stays one run's.

    folders.py THINWIRE [TIMES]

In turn over threads, under mpirun, and over sockets, started at random distances.
"""

import concurrent.futures
import os
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
    started = []

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
        # A full pipe would hold the run up.
        readers = concurrent.futures.ThreadPoolExecutor()
        self.texts = [readers.submit(process.communicate) for process in self.processes]
        readers.shutdown(wait=False)
        Run.started.append(self)

    def has_ended(self):
        return all(process.poll() is not None for process in self.processes)

    def signal(self, number):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def result(self):
        """Exit codes, and all that was said."""
        text = [part for texts in self.texts for part in texts.result(timeout=120)]
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


def require_whole(folder, run, text, first=1):
    """What the run left is that of one that had the folder for itself, from step `first` on."""
    end = end_of(folder)
    steps = [line["step"] for line in metrics(folder)]
    assert steps == [*range(first or steps[0], end["step"] + 1), end["step"]], steps
    for checkpoint in (folder / "checkpoints").iterdir():
        checked = PROGRAM.run("verify", checkpoint)
        assert checked.returncode == 0, checked.stderr
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


def remove(folder):
    """Though somebody writes into it: until there was a moment without it."""
    away = folder.with_name(folder.name + "-removed")
    os.rename(folder, away)
    shutil.rmtree(away, ignore_errors=True)


def stand_still(run):
    """Returns when no thread of the run does anything any more."""
    run.signal(signal.SIGSTOP)

    def states():
        for process in run.processes:
            for stat in pathlib.Path(f"/proc/{process.pid}/task").glob("*/stat"):
                yield stat.read_text().rpartition(")")[2].split()[0]

    wait_until(lambda: set(states()) <= {"T"}, "it does not stand still")


def removed_folder(folder, kinds, stands_still):
    """The folder is removed under a run, and a second one started at once. If the first one stands
    still meanwhile, the second one has the folder."""
    first = Run(kinds[0], folder, 1)
    wait_until(lambda: len(lines_of(folder)) > 25, "it does not train")
    if stands_still:
        stand_still(first)
    remove(folder)
    second = Run(kinds[1], folder, 2)
    if stands_still:
        wait_until(lambda: len(lines_of(folder)) > 25, "the second one does not train")
        first.signal(signal.SIGCONT)
    loser, winner = (first, second) if stands_still else (second, first)
    wait_until(loser.has_ended, "the one without the folder goes on", 60)
    codes, text = loser.result()
    # Of a job that has begun, the other ranks lose rank 0.
    assert 73 in codes and set(codes) <= {73, 71}, f"{codes}\n{text}"
    assert f"'{folder}' belongs to another run" in text and "bug:" not in text, text
    seen = len(lines_of(folder))
    wait_until(lambda: len(lines_of(folder)) > seen + 12, "the other does not train")
    winner.signal(signal.SIGUSR1)
    codes, text = winner.result()
    assert codes == [75] * len(codes), f"{codes}\n{text}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints", "metrics.jsonl", "tensorboard"], list(folder.iterdir())
    require_whole(folder, winner, text, first=1 if stands_still else None)


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
    for number in range(TIMES):
        kinds = [("threads", "sockets"), ("sockets", "threads")][number // 2 % 2]
        removed_folder(base / f"removed-{number}", kinds, stands_still=number % 2 == 1)
    print(f"{TIMES} pairs of runs in one folder: each time one was refused and the other whole; the "
          "folder of a killed run was free at once, 2 times; a folder that was removed under a run "
          f"stayed one run's, {TIMES} times")
    shutil.rmtree(base)


try:
    main()
finally:
    for started in Run.started:
        started.signal(signal.SIGKILL)
