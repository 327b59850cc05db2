"""kill -9 at random moments of a run that checkpoints every step, to one rank or to all, while it
starts, reads its checkpoint, trains and writes the next: every restart finds a whole checkpoint and
goes on, and the end has the bits of a run that was never killed. Ranks are threads and processes by
turns.

    kill_test.py THINWIRE [KILLS [SEED]]
"""

import collections
import pathlib
import random
import re
import shutil
import sys
import tempfile
import time

from jobs import FORMS, RANKS, Job, steps_of

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "launch"))
from support import Program, end_of  # noqa: E402

PROGRAM = Program(sys.argv[1])
KILLS = int(sys.argv[2]) if len(sys.argv) > 2 else 20
SEED = int(sys.argv[3]) if len(sys.argv) > 3 else 7
JOB = ["--model", "mlp:hidden=64", "--data", "synthetic:samples=256,test_samples=32,size=8",
       "--batch-size", "8", "--lr", "0.05", "--momentum", "0.5", "--compressor", "sign",
       "--timeout", "20"]
# When: while the process starts; from the line on after which it reads its checkpoint; when the
# folder of the next one is there without a manifest; some steps later.
MOMENTS = ("start", "resume", "save", "step")
BEFORE_RESUME = r"samples a step\n"


class Killing:
    def __init__(self, folder, draw):
        self.output = folder / "run"
        self.root = self.output / "checkpoints"
        self.draw = draw
        self.last = 0  # the newest step that is saved
        self.counts = collections.Counter()

    def newest(self):
        return (steps_of(self.root)[1] or [0])[-1]

    def is_writing(self):
        every, whole = steps_of(self.root)
        return bool(every) and every != whole and every[-1] > self.last

    def wait(self, job, moment):
        if moment == "start":
            time.sleep(self.draw.uniform(0, 0.4))
            return
        job.wait_for("the ranks to meet", lambda: re.search(BEFORE_RESUME, job.text(0)))
        if moment == "resume":
            time.sleep(self.draw.uniform(0, 0.006))
        elif moment == "save":
            job.wait_for("a checkpoint in the making", self.is_writing)
            time.sleep(self.draw.uniform(0, 0.002))
        else:
            goal = self.last + self.draw.randint(1, 3)
            job.wait_for("progress", lambda: self.newest() >= goal)
            time.sleep(self.draw.uniform(0, 0.02))

    def kill(self, number):
        form = self.draw.choice(FORMS)
        moment = MOMENTS[number % len(MOMENTS)]
        # A rank that is missing before the ranks have met is waited for until the timeout.
        one = form == "sockets" and moment != "start" and self.draw.random() < 0.5
        victim = self.draw.randrange(RANKS) if one else None
        job = Job(PROGRAM.path, form, *JOB, "--checkpoint-every", 1, "--steps", 10**6, "--output",
                  self.output, "--resume", "auto")
        self.wait(job, moment)
        job.kill(victim)
        codes = job.codes()
        text = job.text()
        where = f"kill {number}: {form}, {moment}, rank {victim}: {codes}\n{text}"
        if one:
            assert codes[victim] == -9 and codes[1 - victim] == 71, where
        resumed = re.search(r"resumed from .* at step (\d+)", text)
        reads = re.search(BEFORE_RESUME, text)
        if resumed:
            assert int(resumed.group(1)) >= self.last, where
        every, whole = steps_of(self.root)
        assert self.last == 0 or whole and whole[-1] >= self.last, where
        self.counts[f"{form}, {'one rank' if one else 'all ranks'}"] += 1
        self.counts["before the ranks had met"] += not reads
        self.counts["reading a checkpoint"] += bool(reads) and not resumed and self.last > 0
        self.counts["writing one"] += bool(every) and every != whole and every[-1] > self.last
        self.last = whole[-1] if whole else 0
        job.close()


def main():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-kill-"))
    killing = Killing(folder, random.Random(SEED))
    for number in range(KILLS):
        killing.kill(number)

    checkpoint = killing.root / f"step-{killing.last:08d}"
    checked = PROGRAM.run("verify", checkpoint)
    assert checked.returncode == 0, checked.stderr
    job = ["train", *JOB, "--ranks", RANKS, "--steps", killing.last + 5]
    result = PROGRAM.run(*job, "--output", killing.output, "--resume", "auto")
    assert result.returncode == 0, result.stderr
    assert f"at step {killing.last}\n" in result.stdout, result.stdout
    result = PROGRAM.run(*job, "--output", folder / "whole")
    assert result.returncode == 0, result.stderr
    killed, whole = (end_of(folder / name)["parameters_hash"] for name in ("run", "whole"))
    print(f"{KILLS} kills: " + ", ".join(f"{count} {what}" for what, count in
                                         sorted(killing.counts.items())))
    print(f"{killing.last + 5} steps, parameters {killed} and {whole}")
    assert killed == whole
    # How many is luck; how a checkpoint that is cut at every byte is read, others test.
    assert KILLS < 20 or killing.counts["writing one"] > 0, "no kill hit a checkpoint being written"
    shutil.rmtree(folder)


main()
