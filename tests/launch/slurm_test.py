"""Really runs `thinwire train` under srun and sbatch; slurm_one_node.sh gives it the cluster."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

from support import SMALL, Program, end_of, metrics, mpi_environment, mpirun

PROGRAM = Program(sys.argv.pop(1))
JOBS = pathlib.Path(__file__).resolve().parents[2] / "launch/jobs"
HAS_MPI = mpirun() is not None and "off" not in re.search(
    r"MPI +(.*)", PROGRAM.run("info").stdout).group(1)
SLURM = {"SLURM_CONF": os.environ["SLURM_CONF"]}


def slurm(*command, timeout=120):
    return subprocess.run([str(word) for word in command], env={**mpi_environment(), **SLURM},
                          text=True, capture_output=True, timeout=timeout, check=False)


class Slurm(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def hash_of_threads(self, *job):
        result = PROGRAM.run("train", *SMALL, *job, "--ranks", 2, "--output",
                             self.folder / "threads")
        self.assertEqual(result.returncode, 0, result.stderr)
        return end_of(self.folder / "threads")["parameters_hash"]

    def check_bits(self, arguments, line):
        job = ("--steps", 30, "--compressor", "sign")
        result = slurm("srun", "-n", 2, *arguments, PROGRAM.path, "train", *SMALL, *job,
                       "--output", self.folder / "srun")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertRegex(result.stdout.splitlines()[0], line)
        self.assertEqual(result.stdout.count("launcher srun"), 1)
        self.assertEqual(end_of(self.folder / "srun")["parameters_hash"],
                         self.hash_of_threads(*job))

    def test_the_bits_of_threads(self):
        self.check_bits([], r"launcher srun \(this is step \d+\.0 of Slurm\): rank 0 of 2, local "
                            r"rank 0 of 2; ranks over sockets, met at 127\.0\.0\.1:2\d{4}; no "
                            r"secret: jobs are told apart by 'srun-\S+', whoever reaches the ports "
                            r"can join, on ")

    @unittest.skipUnless(HAS_MPI, "built without MPI")
    def test_mpi_where_srun_offers_it(self):
        listed = slurm("srun", "--mpi=list")
        if "pmix" not in listed.stdout + listed.stderr:
            self.skipTest("this Slurm has no PMIx")
        self.check_bits(["--mpi=pmix"], r"launcher srun .*; ranks over mpi; strangers kept out .*, on ")

    def test_who_is_believed_in_an_allocation(self):
        table = [
            ([PROGRAM.path], r"alone \(Slurm's job \d+ has not started it with srun\)"),
            (["srun", "-n", 3, PROGRAM.path], r"srun \(this is step \d+\.0 of Slurm\): rank 0 of 3"),
        ]
        if HAS_MPI:
            table.append((["mpirun", "-np", 2, PROGRAM.path],
                          r"mpirun \(OMPI_COMM_WORLD_RANK is set, inside Slurm's job \d+\): rank 0 "
                          r"of 2"))
        for command, line in table:
            result = slurm("salloc", "-n", 4, *command, "info")
            self.assertRegex(result.stdout, r"\nlauncher +" + line, result.stderr)

    def test_one_rank_speaks_for_all(self):
        result = slurm("srun", "-n", 2, PROGRAM.path, "train", "--lr", "x")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertEqual(re.findall(r"^thinwire: .*", result.stderr, re.MULTILINE),
                         ["thinwire: rank 0: --lr is 'x'; give a number from 0 to 1000"])

    def wait_for(self, what, text):
        deadline = time.monotonic() + 120
        while not what():
            self.assertLess(time.monotonic(), deadline, text())
            time.sleep(0.05)

    def test_a_signal_to_the_batch_script_queues_the_job_again(self):
        log = self.folder / "log"
        run = self.folder / "run"
        small = SMALL[:SMALL.index("--report-every")]
        job = ["--compressor", "sign", "--report-every", 1, "--output", run]
        submitted = slurm("sbatch", "--parsable", "-n", 2, "--output", log,
                          f"--export=ALL,THINWIRE={PROGRAM.path}", JOBS / "slurm.sh", *small, *job,
                          "--steps", 1000000)
        self.assertEqual(submitted.returncode, 0, submitted.stderr)
        number = submitted.stdout.strip()

        def state():
            shown = slurm("scontrol", "show", "job", number).stdout
            return (re.search(r"JobState=(\w+)", shown).group(1),
                    re.search(r"Restarts=(\d+)", shown).group(1))

        def text():
            return f"{state()} " + (log.read_text() if log.exists() else "")

        file = run / "metrics.jsonl"
        self.wait_for(lambda: file.exists() and metrics(run), text)
        # What --signal does at the time limit.
        slurm("scancel", "--batch", "--signal=USR1", number)
        self.wait_for(lambda: state() == ("PENDING", "1"), text)
        slurm("scancel", number)
        self.assertIn(f"stopped on request: job {number} queues again", log.read_text())
        end = end_of(run)
        self.assertTrue(end["stopped"])
        # Slurm starts it again after two minutes; with two threads it goes on at once, ten steps
        # further: the bits of a run without a stop.
        steps = ("--steps", end["step"] + 10)
        result = PROGRAM.run("train", *small, *job, *steps, "--ranks", 2, "--resume", "auto")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(end_of(run)["parameters_hash"],
                         self.hash_of_threads("--compressor", "sign", *steps))


if __name__ == "__main__":
    unittest.main(verbosity=1)
