"""Really runs `thinwire train` under torchrun. Exits 77 where this Python cannot run torchrun."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

from support import SMALL, Program, end_of, environment, metrics

PROGRAM = Program(sys.argv.pop(1))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SIGNALS = "SIGUSR1,SIGTERM"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Torchrun(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def start(self, options, *program):
        command = [*TORCHRUN, *options, "--nproc-per-node", "2", "--no-python", *program]
        return subprocess.Popen(list(map(str, command)), env=environment(), text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def torchrun(self, options, *program):
        process = self.start(options, *program)
        out, err = process.communicate(timeout=180)
        return process.returncode, out, err

    def hash_of_threads(self, *job):
        result = PROGRAM.run("train", *SMALL, *job, "--ranks", 2, "--output",
                             self.folder / "threads")
        self.assertEqual(result.returncode, 0, result.stderr)
        return end_of(self.folder / "threads")["parameters_hash"]

    def test_the_bits_of_threads(self):
        job = ("--steps", 30, "--compressor", "sign")
        code, out, err = self.torchrun(["--standalone"], PROGRAM.path, "train", *SMALL, *job,
                                       "--output", self.folder / "torchrun")
        self.assertEqual(code, 0, out + err)
        self.assertRegex(out.splitlines()[0], r"\Alauncher torchrun \(TORCHELASTIC_RUN_ID is set\): "
                         r"rank 0 of 2, local rank 0 of 2; ranks over sockets, met at \S+:\d+; no secret: jobs are "
                         r"told apart by 'torchrun-\S+', whoever reaches the ports can join, on ")
        self.assertEqual(out.count("launcher torchrun"), 1)
        self.assertEqual(end_of(self.folder / "torchrun")["parameters_hash"],
                         self.hash_of_threads(*job))

    def test_a_restart_does_not_meet_the_first_start(self):
        # The agent keeps its store, and what the first start left in it, over the restart. The
        # first start ends after the rendezvous: its ranks find that their seeds differ. In the
        # second one rank 1 is there first, and must wait for rank 0's new address.
        script = self.folder / "job.sh"
        script.write_text(f"""#!/bin/sh
if [ "$TORCHELASTIC_RESTART_COUNT$RANK" = 01 ]; then set -- "$@" --seed 2; fi
if [ "$TORCHELASTIC_RESTART_COUNT$RANK" = 10 ]; then sleep 3; fi
exec "{pathlib.Path(PROGRAM.path).resolve()}" "$@"
""")
        script.chmod(0o755)
        job = ("--steps", 20)
        code, out, err = self.torchrun(
            ["--max-restarts", "1", "--master-port", free_port()],
            script, "train", *SMALL, *job, "--output", self.folder / "torchrun")
        self.assertEqual(code, 0, out + err)
        self.assertEqual(out.count("launcher torchrun"), 2, out + err)
        self.assertEqual(err.count("seed: 1 (rank 0), 2 (rank 1)"), 1, out + err)
        self.assertEqual(end_of(self.folder / "torchrun")["parameters_hash"],
                         self.hash_of_threads(*job))

    def test_one_rank_speaks_for_all(self):
        code, out, err = self.torchrun(["--standalone"], PROGRAM.path, "train", "--lr", "x")
        self.assertNotEqual(code, 0)
        said = re.findall(r"^thinwire: .*", err, re.MULTILINE)
        self.assertEqual(said, ["thinwire: rank 0: --lr is 'x'; give a number from 0 to 1000"],
                         out + err)

    def test_sigusr1_to_torchrun(self):
        job = ["--compressor", "sign", "--report-every", 1, "--output", self.folder / "torchrun"]
        small = SMALL[:SMALL.index("--report-every")]
        process = self.start(["--standalone", "--signals-to-handle", SIGNALS], PROGRAM.path,
                             "train", *small, *job, "--steps", 1000000)
        deadline = time.monotonic() + 120
        file = self.folder / "torchrun/metrics.jsonl"
        while not file.exists() or not metrics(self.folder / "torchrun"):
            self.assertLess(time.monotonic(), deadline)
            self.assertIsNone(process.poll())
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=120)
        end = end_of(self.folder / "torchrun")
        self.assertTrue(end["stopped"], out + err)
        # Resumed by threads, ten steps further: the bits of a run without a stop.
        steps = ("--steps", end["step"] + 10)
        result = PROGRAM.run("train", *small, *job, *steps, "--ranks", 2, "--resume", "auto")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(end_of(self.folder / "torchrun")["parameters_hash"],
                         self.hash_of_threads("--compressor", "sign", *steps))


if __name__ == "__main__":
    works = subprocess.run([*TORCHRUN, "--help"], env=os.environ, text=True, capture_output=True,
                           check=False)
    if works.returncode != 0:
        print(f"skipped: torchrun does not start: {works.stderr.splitlines()[-1:]}")
        sys.exit(77)
    unittest.main(verbosity=1)
