"""Runs the command itself: what it prints where, and its exit codes."""

import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

from support import SMALL, Program, end_of, environment

PROGRAM = sys.argv.pop(1) if len(sys.argv) > 1 else os.environ["THINWIRE_PROGRAM"]

BAD = [
    # arguments, exit code, what stderr is
    ([], 2, r"no command; give train, advise, bench, verify, info, help"),
    (["trian"], 2, r"unknown command 'trian'; did you mean 'train'\?"),
    (["--train"], 2, r"unknown command '--train'; did you mean 'train'\?"),
    (["train", "--learning-rate", "1"], 2, r"unknown flag --learning-rate; "),
    (["train", "--momentun", "1"], 2, r"unknown flag --momentun; did you mean '--momentum'\?"),
    (["train", "--epoch", "1"], 2, r"unknown flag --epoch; did you mean '--epochs'\?"),
    (["train", "--lr"], 2, r"--lr lacks its value; write --lr VALUE"),
    (["train", "--lr", "--epochs", "1"], 2, r"--lr lacks its value; "),
    (["train", "--lr", "0.1", "--lr", "0.1"], 2, r"--lr is given twice; "),
    (["train", "quickly"], 2, r"'quickly' belongs to no flag; "),
    (["train", "--lr", "much"], 2, r"--lr is 'much'; give a number from 0 to 1000"),
    (["train", "--batch-size", "-4"], 2, r"--batch-size is '-4'; give a whole number from 1 to "),
    (["train", "--epochs", "1e3"], 2, r"--epochs is '1e3'; give a whole number from 1 to "),
    (["train", "--momentum", "1"], 2, r"--momentum is '1'; give a number from 0 to 0\.9999"),
    (["train", "--ranks", "0"], 2, r"--ranks is '0'; give a whole number from 1 to 256"),
    (["train", "--model", ""], 2, r"--model is empty; "),
    (["train", "--backend", "mpj"], 2, r"--backend is 'mpj'; give auto, threads, mpi or sockets"),
    (["train", "--backend", "sockets", "--ranks", "2"], 2, r"--ranks 2 makes ranks threads, "),
    (["train", "--device", "gpu"], 2, r"--device is 'gpu'; give auto, cpu or cuda"),
    (["train", "--share-device", "yes"], 2, r"'yes' belongs to no flag; "),
    (["train", "--share-device=yes"], 2, r"--share-device takes no value; "),
    (["train", "--help=yes"], 2, r"--help takes no value; "),
    (["train", "--config", "/nonexistent/a.ini"], 74,
     r"cannot read '/nonexistent/a\.ini': No such"),
    (["train", "--config", "/"], 74, r"cannot read '/': Is a directory; "),
    (["train", "--print-config", "--output", "a #b"], 2,
     r"--output is 'a #b', which a config file"),
    (["train", "--config", "/dev/zero"], 2, r"'/dev/zero' is no file and no pipe; "),
    (["train", "--data", "synthetic", "--model", "mlp\x1b[2J"], 2,
     r"--model 'mlp\\x1b\[2J' is not known; "),
    (["advise", "--json"], 2, r"--json lacks its value; "),
    (["advise", "--learning-rate", "1"], 2, r"unknown flag --learning-rate; "),
    (["verify"], 2, r"verify takes one folder"),
    (["verify", "a", "b"], 2, r"verify takes one folder, not 'a b'"),
    (["info", "--all"], 2, r"info takes no '--all'"),
]


def run(arguments, **variables):
    return subprocess.run([PROGRAM, *arguments], env=environment(**variables), text=True,
                          capture_output=True, timeout=60, check=False)


def without(job, *names):
    return [word for pair in zip(job[::2], job[1::2]) if pair[0] not in names for word in pair]


def open_mpi(rank, size):
    return {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(size),
            "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)}


class Command(unittest.TestCase):
    def test_bad_arguments(self):
        for arguments, code, pattern in BAD:
            with self.subTest(arguments=arguments):
                result = run(arguments)
                self.assertEqual(result.returncode, code, result.stderr)
                self.assertRegex(result.stderr, r"\Athinwire: (--config: )?" + pattern)
                self.assertEqual(result.stderr.count("\n"), 1)
                self.assertEqual(result.stdout, "")

    def test_help(self):
        for arguments in (["help"], ["--help"], ["-h"], ["verify", "--help"]):
            with self.subTest(arguments=arguments):
                result = run(arguments)
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                self.assertIn("thinwire verify FOLDER", result.stdout)
                self.assertRegex(result.stdout, r"\n +78  \w")

    def test_train_help(self):
        result = run(["train", "--help"])
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        groups = re.findall(r"^(\w[\w ]+):$", result.stdout, re.MULTILINE)
        self.assertEqual(groups, ["Data and model", "Length", "Optimizer", "Communication", "Run",
                                  "This command"])
        self.assertRegex(result.stdout, r"--batch-size N \(=64\) +samples per rank")
        self.assertEqual(run(["help", "train"]).stdout, result.stdout)

    def test_info(self):
        result = run(["info"])
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        names = [line.split()[0] for line in result.stdout.splitlines()]
        self.assertEqual(names, ["thinwire", "compiler", "libtorch", "MPI", "CUDA", "NCCL",
                                 "launcher"])
        self.assertIn("\nlauncher  alone (no launcher's variables are set)\n", result.stdout)
        result = run(["info"], **open_mpi(0, 2))
        self.assertIn("\nlauncher  mpirun (OMPI_COMM_WORLD_RANK is set): rank 0 of 2, ",
                      result.stdout)

    def test_print_config_round_trip(self):
        first = run(["train", "--lr", "0.3", "--share-device", "--ranks", "2",
                     "--print-config"])
        self.assertEqual((first.returncode, first.stderr), (0, ""))
        self.assertIn("\nlr = 0.3\n", first.stdout)
        self.assertIn("\nranks = 2\n", first.stdout)
        self.assertIn("\nshare-device = true\n", first.stdout)
        with tempfile.NamedTemporaryFile("w", suffix=".ini") as file:
            file.write(first.stdout)
            file.flush()
            again = run(["train", "--config", file.name, "--print-config"])
            self.assertEqual((again.returncode, again.stdout), (0, first.stdout))
            other = run(["train", "--config", file.name, "--lr", "0.4", "--print-config"])
            self.assertEqual(other.stdout, first.stdout.replace("\nlr = 0.3\n", "\nlr = 0.4\n"))

    def test_config_errors_name_the_line(self):
        with tempfile.NamedTemporaryFile("w", suffix=".ini") as file:
            file.write("# mine\nlr = 0.1\nepoch = 3\n")
            file.flush()
            result = run(["train", "--config", file.name])
            self.assertEqual(result.returncode, 2)
            self.assertIn(f"{file.name}:3: unknown key 'epoch'; did you mean 'epochs'?",
                          result.stderr)

    def test_threads_that_cannot_be_made(self):
        # Threads get stacks as large as this says: more than a process can address.
        hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
        if hard != resource.RLIM_INFINITY:
            self.skipTest("stacks are limited here")
        stack = (1 << 47, hard)
        result = subprocess.run(
            [PROGRAM, "bench", "all-reduce", "--ranks", "2"], env=environment(), text=True,
            capture_output=True, timeout=60, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, stack))
        self.assertEqual(result.returncode, 70, result.stderr)
        self.assertRegex(result.stderr, r"\Athinwire: cannot make a thread: .*; raise `ulimit -u`")

    def test_one_rank_speaks_for_all(self):
        first = run(["train", "--lr", "x"], **open_mpi(0, 2))
        self.assertEqual(first.returncode, 2)
        self.assertRegex(first.stderr, r"\Athinwire: rank 0: --lr is 'x'; ")
        second = run(["train", "--lr", "x"], **open_mpi(1, 2))
        self.assertEqual((second.returncode, second.stderr), (2, ""))
        self.assertIn("Usage", run(["help"], **open_mpi(0, 2)).stdout)
        self.assertEqual(run(["help"], **open_mpi(1, 2)).stdout, "")

    def test_ranks_and_mpirun_exclude_each_other(self):
        result = run(["train", "--ranks", "2"], **open_mpi(0, 2))
        self.assertEqual(result.returncode, 2)
        self.assertIn("--ranks is 2 in each of 2 processes", result.stderr)

    def test_contradicting_environment(self):
        result = run(["info"], OMPI_COMM_WORLD_SIZE="2")
        self.assertEqual(result.returncode, 2)
        self.assertRegex(result.stderr, r"OMPI_COMM_WORLD_SIZE is set, but \w+ is not; ")

    def test_output_that_is_not_written_is_an_error(self):
        for arguments in (["help"], ["help", "train"], ["info"], ["train", "--print-config"]):
            for name, result in Program(PROGRAM).run_where_nobody_reads(*arguments):
                with self.subTest(arguments=arguments, stdout=name):
                    self.assertEqual(
                        (result.returncode, result.stderr),
                        (73, "thinwire: cannot write to stdout; check where it goes\n"))


class Run(unittest.TestCase):
    """`thinwire train` and what happens around it."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.job = [*SMALL, "--steps", "40", "--ranks", "2", "--output", str(self.folder / "run")]

    def hash_of(self, name="run"):
        return end_of(self.folder / name)["parameters_hash"]

    def test_a_stdout_that_cannot_be_written_ends_no_run(self):
        self.assertEqual(run(["train", *self.job]).returncode, 0)
        expected = self.hash_of()
        checkpoint = self.folder / "run/checkpoints/step-00000040"
        for name, result in Program(PROGRAM).run_where_nobody_reads("train", *self.job):
            with self.subTest(stdout=name):
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertEqual(result.stderr.count("warning: cannot write to stdout: "), 1)
                self.assertEqual(self.hash_of(), expected)
                self.assertEqual(run(["verify", str(checkpoint)]).returncode, 0)
        for name, result in Program(PROGRAM).run_where_nobody_reads("verify", checkpoint):
            with self.subTest(stdout=name):
                self.assertEqual(
                    (result.returncode, result.stderr),
                    (73, "thinwire: cannot write to stdout; check where it goes\n"))

    def test_neither_does_a_stderr(self):
        # Both go to one reader, as in `2>&1 | head -1`.
        reader, writer = os.pipe()
        process = subprocess.Popen([PROGRAM, "train", *self.job, "--compressor", "sign"],
                                   env=environment(), stdout=writer, stderr=writer)
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        self.assertEqual(process.wait(60), 0)
        self.assertEqual(end_of(self.folder / "run")["step"], 40)

    # Half a second or more is spent on making these.
    MUCH = ["--data", "synthetic:samples=100000,test_samples=64,size=16"]

    def start(self, *arguments, **variables):
        """A run that is about to read its data, with all that asks it to stop under its control."""
        process = Program(PROGRAM).start("train", *arguments, **variables)
        self.addCleanup(lambda: (process.kill(), process.stdout.close(), process.stderr.close(),
                                 process.wait()))
        status = pathlib.Path(f"/proc/{process.pid}/status")
        deadline = time.monotonic() + 30
        while not int(re.search(r"SigBlk:\s*(\w+)", status.read_text()).group(1), 16):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.001)
        return process

    def check_stopped(self, process, pattern):
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 75, out + err)
        self.assertRegex(out, pattern)
        self.assertFalse((self.folder / "run/metrics.jsonl").exists())
        return out

    def test_signals_before_the_data_are_read(self):
        job = [*without(SMALL, "--data"), *self.MUCH, *self.job[len(SMALL):]]
        for name in ("HUP", "XCPU"):
            process = self.start(*job)
            process.send_signal(getattr(signal, "SIG" + name))
            self.check_stopped(process, "stopped on request before the first step: no checkpoint "
                               "yet; the same command")
        process = self.start(*job, "--resume", "auto")
        process.send_signal(signal.SIGTERM)
        self.check_stopped(process, "before the first step: no new checkpoint; ")

    def test_a_signal_to_one_of_several_processes_before_they_have_met(self):
        job = [*without(SMALL, "--data"), *self.MUCH, "--steps", "40", "--output",
               str(self.folder / "run")]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        places = [{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for rank in "01"]
        processes = [self.start(*job, **place) for place in places]
        processes[1].send_signal(signal.SIGUSR2)
        self.check_stopped(processes[0], "before the first step: no checkpoint yet")
        self.assertEqual(processes[1].wait(30), 75)

    def test_a_signal_while_a_checkpoint_is_read(self):
        # 24 MB a rank, so that it lasts.
        job = [*without(self.job, "--model", "--steps"), "--model", "mlp:hidden=1600,1600,1600",
               "--compressor", "sign"]
        result = run(["train", *job, "--steps", "2"])
        self.assertEqual(result.returncode, 0, result.stderr)
        (self.folder / "run/metrics.jsonl").unlink()
        process = self.start(*job, "--steps", "1000", "--resume", "auto")
        said = ""
        while "samples a step" not in said:
            said = process.stdout.readline()
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 75, out + err)
        # On a busy machine this test may be late, and the run be in its first steps.
        self.assertRegex(out, r"before the first step: no checkpoint newer than \S+step-00000002; |"
                         r"stopped on request")

    def test_what_nohup_ignores_stays_ignored(self):
        process = subprocess.Popen(["nohup", PROGRAM, "train", *without(self.job, "--steps"),
                                    "--steps", "3000"], env=environment(), text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        for line in process.stdout:
            if line.startswith("step 10/"):
                process.send_signal(signal.SIGHUP)
        err = process.stderr.read()
        process.stdout.close()
        process.stderr.close()
        self.assertEqual(process.wait(60), 0, err)
        self.assertNotIn("SIGHUP", err)

    def test_a_trace_that_is_not_written_is_an_error(self):
        result = run(["train", *self.job, "--trace", "/dev/full"])
        self.assertEqual(result.returncode, 74, result.stderr)
        self.assertIn("cannot write the trace to '/dev/full'", result.stderr)


if __name__ == "__main__":
    unittest.main()
