"""Faults against four ranks under mpirun: each ends with its exit code, in its time, with a line
that names the culprit, and the last checkpoint is whole and can be continued from.

    fault_test.py THINWIRE FAULTY_TRAIN [--short] [--seed N] [--kinds kill,stop,...]

Every kind hits rank 0, which hosts the lifeline, and another rank, at random moments. FAULTY_TRAIN
is the program of faulty_train.cpp. A kind that cannot be done on this machine is skipped aloud.
"""

import argparse
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "launch"))
from support import end_of, metrics, mpi_environment, mpirun  # noqa: E402

NETLAB = pathlib.Path(__file__).parent.parent / "bench/netlab"
RANKS = 4
TIMEOUT = 5  # --timeout
# A launcher needs about two seconds to end a job; the rest is for a loaded machine.
SLACK = 10
JOB = ["--model", "mlp:hidden=24", "--data", "synthetic:samples=256,test_samples=64,size=8",
       "--batch-size", "8", "--lr", "0.05", "--momentum", "0", "--compressor", "sign",
       "--report-every", "10", "--checkpoint-every", "20", "--timeout", str(TIMEOUT)]


class Skip(Exception):
    pass


def pairs(arguments):
    words = [str(word) for word in arguments]
    return dict(zip(words[::2], words[1::2]))


def flat(options):
    return [word for pair in options.items() for word in pair]


class Job:
    """Four ranks under mpirun, their output with the time of each line. `arguments` replace those
    of JOB, those that `of_rank` has for a rank replace both; `launcher` instead of mpirun."""

    def __init__(self, command, arguments, folder, of_rank=None, launcher=None):
        self.folder = folder / "run"
        self.options = {**pairs(JOB), **pairs(arguments), "--output": str(self.folder)}

        def line_of(ranks, options):
            return ["-np", str(ranks), *command, "train", *flat(options)]

        if launcher:
            line = [*launcher, *command, "train", *flat(self.options)]
        elif of_rank:
            line = [mpirun()]
            for rank in range(RANKS):
                line += line_of(1, {**self.options, **of_rank.get(rank, {})})
                line += [":"] if rank + 1 < RANKS else []
        else:
            line = [mpirun(), *line_of(RANKS, self.options)]
        self.process = subprocess.Popen(line, env=mpi_environment(), text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.lines = []
        self.threads = [threading.Thread(target=self.read, args=(stream,), daemon=True)
                        for stream in (self.process.stdout, self.process.stderr)]
        for thread in self.threads:
            thread.start()

    def read(self, stream):
        for line in stream:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    def text(self):
        return "\n".join(line for _, line in self.lines)

    def wait_for(self, what, ready, limit=120):
        deadline = time.monotonic() + limit
        while not ready():
            assert time.monotonic() < deadline, f"{what} did not come\n{self.text()}"
            assert self.process.poll() is None, f"ended before {what}\n{self.text()}"
            time.sleep(0.02)

    def whole_checkpoints(self):
        return sorted(self.folder.glob("checkpoints/step-*/manifest.json"))

    def wait_until_it_trains(self):
        self.wait_for("a checkpoint", self.whole_checkpoints)

    def find(self, pattern):
        """When the first line came that says this, and the line."""
        return next(((at, line) for at, line in list(self.lines) if re.search(pattern, line)), None)

    def pid_of(self, rank):
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], text=True,
                                  capture_output=True, check=False).stdout.split()
        for pid in map(int, children):
            variables = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if f"OMPI_COMM_WORLD_RANK={rank}".encode() in variables:
                return pid
        raise AssertionError(f"no process of rank {rank}")

    def end(self, limit):
        try:
            self.process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"did not end within {limit} s\n{self.text()}") from None
        for thread in self.threads:
            thread.join()
        return self.process.returncode

    def stop_cleanly(self):
        self.process.send_signal(signal.SIGUSR1)
        return self.end(60)


class Result:
    """What a fault came to: the job, when it hit, and what is expected of it."""

    def __init__(self, job, began, code, name, name_within, flights=()):
        self.job = job
        self.began = began
        self.code = code
        self.name = name  # of the line that names the culprit
        self.name_within = name_within  # seconds
        self.flights = flights  # ranks that leave a flight record


def end_of_rank(rank):
    return "rank 0, which hosts the lifeline," if rank == 0 else f"rank {rank}"


class Faults:
    def __init__(self, thinwire, faulty, draw, folder):
        self.thinwire = thinwire
        self.faulty = faulty
        self.draw = draw
        self.folder = folder

    def start(self, *arguments, **keywords):
        job = Job([self.thinwire], ["--steps", 10**7, *arguments], self.folder, **keywords)
        job.wait_until_it_trains()
        time.sleep(self.draw.uniform(0, 0.5))
        return job

    def inject(self, fault, *arguments):
        """A job whose model does it at some step; it began about when its last checkpoint did."""
        job = Job([self.faulty, fault], arguments or ["--steps", 10**7], self.folder)
        job.wait_until_it_trains()
        return job

    def others(self, rank):
        return [other for other in range(RANKS) if other != rank]

    def kill(self, rank):
        job = self.start()
        began = time.monotonic()
        os.kill(job.pid_of(rank), signal.SIGKILL)
        code = job.end(5 + SLACK)
        return Result(job, began, (code, 137), f"{end_of_rank(rank)} died", 5, self.others(rank))

    def stop(self, rank):
        job = self.start()
        began = time.monotonic()
        os.kill(job.pid_of(rank), signal.SIGSTOP)
        code = job.end(TIMEOUT + SLACK)
        return Result(job, began, (code, 71), f"{end_of_rank(rank)} has not been heard from",
                      TIMEOUT + 5, self.others(rank))

    def stuck(self, rank):
        job = self.inject(f"stuck:rank={rank},step={self.draw.randint(30, 60)}")
        began = time.monotonic()
        code = job.end(TIMEOUT + 2 * SLACK)
        return Result(job, began, (code, 71), rf"rank {rank} is behind: step \d+, computing",
                      TIMEOUT + SLACK, self.others(rank))

    def throw(self, rank):
        job = self.inject(f"throw:rank={rank},step={self.draw.randint(30, 60)}")
        began = time.monotonic()
        code = job.end(5 + SLACK)
        return Result(job, began, (code, 70),
                      rf"(rank {rank}:|{end_of_rank(rank)} failed:) an injected failure",
                      5 + SLACK, [rank])

    def inf(self, rank):
        step = self.draw.randint(25, 35)
        job = self.inject(f"inf:rank={rank},step={step}", "--steps", 60)
        began = time.monotonic()
        code = job.end(60)
        assert end_of(job.folder)["skipped"] == 1
        return Result(job, began, (code, 0), rf"step {step} was rolled back: .*on rank {rank}$", 60)

    def inf_for_ever(self, rank):
        job = self.inject(f"inf:rank={rank},step={self.draw.randint(25, 35)},steps=1000")
        began = time.monotonic()
        code = job.end(60)
        return Result(job, began, (code, 70), rf"50 steps in a row .*on rank {rank};", 60, [rank])

    def damage(self, rank):
        # Between two checkpoints, so that it is the check that sees it.
        job = self.inject(f"damage:rank={rank},step={self.draw.randint(21, 29)}", "--steps", 10**7,
                          "--check-every", 10)
        began = time.monotonic()
        code = job.end(60)
        return Result(job, began, (code, 76),
                      rf"parameter \S+ on rank {rank} is not that of rank {int(rank == 0)};", 60,
                      [])

    def disk(self, rank):
        job = self.start("--model", "mlp:hidden=256")
        began = time.monotonic()
        pid = str(job.pid_of(rank))
        if shutil.which("prlimit") is None:
            raise Skip("no prlimit")
        subprocess.run(["prlimit", "--pid", pid, "--fsize=4096:unlimited"], check=True)
        pattern = rf"warning: the checkpoint of step \d+ was not saved: rank {rank}: .*too large"
        job.wait_for("a checkpoint that failed", lambda: job.find(pattern))
        subprocess.run(["prlimit", "--pid", pid, "--fsize=unlimited"], check=True)
        before = job.whole_checkpoints()
        job.wait_for("the next checkpoint", lambda: job.whole_checkpoints()[-1] > before[-1])
        return Result(job, began, (job.stop_cleanly(), 75), pattern, 60)

    def configuration(self, rank):
        # There is a checkpoint to lose.
        made = subprocess.run(
            [self.thinwire, "train", *JOB, "--ranks", str(RANKS), "--steps", "20", "--output",
             str(self.folder / "run")], capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        began = time.monotonic()
        job = Job([self.thinwire], ["--resume", "auto", "--steps", 10**7], self.folder,
                  of_rank={rank: {"--clip-norm": "3"}})
        code = job.end(60)
        return Result(job, began, (code, 78), rf"clip-norm: .*3 \(rank {rank}\)", 30)

    def slow(self, rank):
        job = Job([self.thinwire],
                  ["--steps", 10**7, "--model", "mlp:hidden=512,512", "--batch-size", 64, "--data",
                   "synthetic:samples=2048,test_samples=64,size=16", "--report-every", 20],
                  self.folder)
        job.wait_until_it_trains()
        job.wait_for("metrics", lambda: metrics(job.folder))
        pid = job.pid_of(rank)
        pattern = f"rank {rank} is slow"
        began = time.monotonic()
        step = metrics(job.folder)[-1]["step"]

        def seen():
            # On a busy machine a rank may be slow by itself, and be named, before this begins.
            return job.find(pattern) and any(
                line["step"] > step + 20 and line["slowest_rank"] == rank and
                line["slowest_ratio"] > 1.5 for line in metrics(job.folder))

        while not seen() and time.monotonic() - began < 60:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.15)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.05)
        assert seen(), f"not seen to be slow\n{job.text()}"
        code = job.stop_cleanly()
        return Result(job, began, (code, 75), pattern, 60)

    def unplug(self, rank):
        seconds = self.draw.uniform(12, 16)
        if not NETLAB.exists():
            raise Skip(f"there is no {NETLAB.name}")
        job = Job([self.thinwire], ["--steps", 10**7, "--checkpoint-every", 3], self.folder,
                  launcher=[str(NETLAB), "--ranks", str(RANKS), "--rate", "1gbit", "--unplug",
                            f"{rank}@{seconds:.1f}", "--"])
        try:
            job.wait_until_it_trains()
        except AssertionError:
            if job.process.poll() == 77:
                raise Skip(job.text()) from None
            raise
        job.wait_for("the cut", lambda: job.find("unplugged rank"))
        began = job.find("unplugged rank")[0]
        code = job.end(TIMEOUT + 3 * SLACK)
        return Result(job, began, (code, 71),
                      rf"rank {rank} (did not take part|is behind)|"
                      f"{end_of_rank(rank)} has not been heard from",
                      TIMEOUT + 5, self.others(rank))


def check(faults, result, quick):
    """Raises AssertionError; returns what to print."""
    job = result.job
    got, expected = result.code
    assert got == expected, f"exit code {got}, not {expected}\n{job.text()}"
    named = job.find(result.name)
    assert named, f"no line says '{result.name}'\n{job.text()}"
    took = named[0] - result.began
    assert took < result.name_within, f"named after {took:.1f} s\n{job.text()}"
    for rank in result.flights:
        flight = json.loads((job.folder / f"flight/rank-{rank}.json").read_text())
        assert flight["rank"] == rank and flight["operations"], flight
    last = job.whole_checkpoints()[-1].parent
    verified = subprocess.run([faults.thinwire, "verify", str(last)], text=True,
                              capture_output=True, check=False)
    assert verified.returncode == 0, verified.stderr
    if not quick:
        step = int(last.name[5:])
        again = subprocess.run(
            [faults.thinwire, "train", "--ranks", str(RANKS),
             *flat({**job.options, "--resume": "auto", "--steps": str(step + 2)})], text=True,
            capture_output=True, check=False)
        assert again.returncode == 0 and f"at step {step}" in again.stdout, again.stderr
    return (f"exit {got:3}, named after {max(took, 0):4.1f} s, checkpoint {last.name}",
            named[1])


KINDS = ["kill", "stop", "stuck", "throw", "inf", "inf_for_ever", "damage", "disk",
         "configuration", "slow", "unplug"]
SHORT = [("kill", 2), ("stop", 0), ("damage", 1), ("configuration", 3)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("thinwire")
    parser.add_argument("faulty")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(KINDS))
    given = parser.parse_args()
    draw = random.Random(given.seed)
    if mpirun() is None:
        print("skipped: no mpirun")
        return
    if given.short:
        faults = SHORT
    else:
        faults = [(kind, rank) for kind in given.kinds.split(",")
                  for rank in (0, draw.randrange(1, RANKS))]
        draw.shuffle(faults)
    failed = 0
    for number, (kind, rank) in enumerate(faults, 1):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-fault-"))
        fault = Faults(given.thinwire, given.faulty, draw, folder)
        title = f"{number:2} {kind:13} rank {rank}"
        try:
            summary, line = check(fault, getattr(fault, kind)(rank), given.short)
            print(f"{title}: {summary}\n     {line}", flush=True)
        except Skip as why:
            print(f"{title}: skipped: {why}", flush=True)
        except (AssertionError, OSError) as why:
            failed += 1
            print(f"{title}: FAILED: {why}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(faults)} faults, {failed} failed")
    sys.exit(1 if failed else 0)


main()
