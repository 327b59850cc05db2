"""Signals that mean "end soon", and a stdout that nobody reads any more, at random moments from the
first millisecond of a run on. No run may be lost: it ends with 75 and a checkpoint that verifies, or
before its first step with 75 and the word that there is none yet, or it trains to its end; and then,
gone on with, it has the bits of a run that nobody disturbed. Ranks are threads and processes by turns.

    signals_at_random.py THINWIRE [TIMES [SEED]]

Before main, while the libraries are loaded, a signal is the system's: its death is allowed there, and
counted.
"""

import collections
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

from jobs import FORMS, RANKS, Job, blocks, steps_of

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "launch"))
from support import Program, end_of  # noqa: E402

PROGRAM = Program(sys.argv[1])
TIMES = int(sys.argv[2]) if len(sys.argv) > 2 else 2
SEED = int(sys.argv[3]) if len(sys.argv) > 3 else 3
KINDS = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, None)
STEPS = 1200
JOB = ["--model", "mlp:hidden=24", "--data", "synthetic:samples=256,test_samples=64,size=8",
       "--batch-size", "8", "--lr", "0.05", "--momentum", "0", "--compressor", "sign",
       "--report-every", "10", "--checkpoint-every", "300", "--steps", STEPS, "--timeout", "20"]
CLOSED = "thinwire: warning: cannot write to stdout"


class Disturbing:
    def __init__(self, folder, draw):
        self.folder = folder
        self.draw = draw
        self.counts = collections.Counter()
        self.span = {}
        for form in FORMS:
            start = time.monotonic()
            job = Job(PROGRAM.path, form, *JOB, "--output", folder / form)
            codes = job.codes()
            assert set(codes) == {0}, job.text()
            self.span[form] = time.monotonic() - start
            job.close()
        self.hashes = {end_of(folder / form)["parameters_hash"] for form in FORMS}
        assert len(self.hashes) == 1, self.hashes

    def disturb(self, form, number):
        """One run, signalled or its stdout closed, and the run that goes on with it."""
        output = self.folder / "run"
        # Half of them early: the time before the first step is short.
        moment = self.draw.uniform(0, self.draw.choice((0.3, 0.9)) * self.span[form])
        who = self.draw.choice([None, *range(RANKS)]) if form == "sockets" else None
        name = signal.Signals(number).name if number else "closed stdout"
        what = f"{name} to {'all' if who is None else who} of {form} after {moment:.3f} s"
        reader, writer = os.pipe() if number is None else (None, None)
        job = Job(PROGRAM.path, form, *JOB, "--output", output, stdout=writer)
        if writer is not None:
            os.close(writer)
        end = time.monotonic() + moment
        if reader is None:
            time.sleep(moment)
            self.signal(job, number, who, what)
        else:
            os.set_blocking(reader, False)
            while time.monotonic() < end:
                time.sleep(0.001)
                try:
                    os.read(reader, 1 << 20)
                except BlockingIOError:
                    pass
            os.close(reader)
            codes = job.codes()
            assert set(codes) == {0}, f"{what}: {codes}\n{job.text()}"
            said = job.text().count(CLOSED)
            assert said <= 1, f"{what}: said {said} times\n{job.text()}"
            self.counts["stdout closed, trained to the end"] += 1
        self.go_on(job, form, output, what)
        job.close()
        shutil.rmtree(output)

    def signal(self, job, number, who, what):
        chosen = job.processes if who is None else [job.processes[who]]
        in_time = [blocks(process, number) for process in chosen]
        for process in chosen:
            process.send_signal(number)
        bare = []
        if not all(in_time):
            # One that was hit before its main leaves nobody to meet.
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline and any(
                    process.poll() is None and not blocks(process, number) for process in chosen):
                time.sleep(0.005)
            bare = [process for process in chosen if process.poll() == -number]
        if bare:
            early = [process for process, ready in zip(chosen, in_time) if not ready]
            assert all(process in early for process in bare), f"{what}: a bare death"
            self.counts["hit before main"] += 1
            job.kill()
            job.codes()
            return
        codes = job.codes()
        text = job.text()
        assert len(set(codes)) == 1 and codes[0] in (0, 75), f"{what}: {codes}\n{text}"
        if codes[0] == 0:
            self.counts["came too late"] += 1
            return
        every, whole = steps_of(self.folder / "run/checkpoints")
        if "before the first step" in text:
            assert "no checkpoint yet" in text and not every, f"{what}\n{text}"
            self.counts["stopped before the first step"] += 1
            return
        assert whole and every == whole, f"{what}: {every} {whole}\n{text}"
        checked = PROGRAM.run("verify", self.folder / f"run/checkpoints/step-{whole[-1]:08d}")
        assert checked.returncode == 0, f"{what}: {checked.stderr}"
        self.counts["stopped with a checkpoint"] += 1

    def go_on(self, job, form, output, what):
        again = Job(PROGRAM.path, form, *JOB, "--output", output, "--resume", "auto")
        codes = again.codes()
        assert set(codes) == {0}, f"{what}: {codes}\n{job.text()}\nand then\n{again.text()}"
        assert end_of(output)["parameters_hash"] in self.hashes, f"{what}\n{again.text()}"
        again.close()


def main():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-signals-"))
    disturbing = Disturbing(folder, random.Random(SEED))
    for time_number in range(TIMES):
        for index, number in enumerate(KINDS):
            disturbing.disturb(FORMS[(time_number + index) % len(FORMS)], number)
    print(f"{TIMES} times each of {len(KINDS)}: " + ", ".join(
        f"{count} {what}" for what, count in sorted(disturbing.counts.items())))
    shutil.rmtree(folder)


main()
