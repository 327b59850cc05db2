"""Runs `thinwire train` and `thinwire verify`: results, exit codes and messages."""

import contextlib
import gzip
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import tfevents
from support import (SMALL, Program, end_of, environment, metrics, mpi_environment,
                     mpirun)

PROGRAM = Program(sys.argv.pop(1))
HAS_MPI = mpirun() is not None and "off" not in re.search(
    r"MPI +(.*)", PROGRAM.run("info").stdout).group(1)


SMALL_WITHOUT_REPORT = SMALL[:SMALL.index("--report-every")]


def idx(shape, values, code=0x08):
    return struct.pack(f">HBB{len(shape)}I", 0, code, len(shape), *shape) + bytes(values)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def train(self, *arguments, name="run", code=0, **keywords):
        given = {a for a in arguments if str(a).startswith("--")}
        kept = [x for pair in zip(SMALL[::2], SMALL[1::2]) if pair[0] not in given for x in pair]
        result = PROGRAM.run("train", *kept, "--output", self.folder / name, *arguments,
                             **keywords)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result

    @contextlib.contextmanager
    def running(self, *arguments, name="run"):
        """A run that has reported something; what it says goes to a file, as a pipe would fill."""
        said = self.folder / "said"
        with open(said, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [PROGRAM.path, "train", *SMALL_WITHOUT_REPORT, "--report-every", "1", "--output",
                 self.folder / name, *map(str, arguments)],
                env=environment(), stdout=file, stderr=file)
        try:
            metrics_file = self.folder / name / "metrics.jsonl"
            wait_for(lambda: metrics_file.exists() and metrics_file.stat().st_size > 0)
            yield process
        finally:
            process.kill()
            process.wait()

    def end(self, process, code, timeout=120):
        process.wait(timeout)
        said = (self.folder / "said").read_text()
        self.assertEqual(process.returncode, code, said)
        return said

    def hash_of(self, name="run"):
        return end_of(self.folder / name)["parameters_hash"]


class Results(Case):
    def test_metrics(self):
        self.train("--ranks", 3, "--steps", 25, "--compressor", "sign:block=64")
        lines = metrics(self.folder / "run")
        self.assertEqual([line["step"] for line in lines], [10, 20, 25, 25])
        for line in lines:
            for key in ("step loss lr samples_per_second bytes_dense bytes_wire residual_ratio "
                        "skipped clip_scale").split():
                self.assertIsInstance(line[key], (int, float), key)
        end = lines[-1]
        self.assertEqual(end["event"], "end")
        self.assertRegex(end["parameters_hash"], r"\A[0-9a-f]{16}\Z")
        self.assertGreater(end["test_accuracy"], 0.5)
        self.assertGreater(end["seconds"], 0)
        self.assertGreater(end["bytes_dense"], 10 * end["bytes_wire"])

    def test_the_start_and_the_exceptions_of_compression(self):
        config = self.folder / "compression.ini"
        config.write_text("compressor = sign:block=64\nstart-iter = 12\ndense-names = fc2*\n"
                          "exchange = two_stage\n")
        result = self.train("--ranks", 2, "--steps", 30, "--config", config)
        self.assertRegex(result.stdout, r"uncompressed: name matches 'fc2\*'")
        self.assertRegex(result.stdout, r"uncompressed: a vector")
        self.assertRegex(result.stdout, r"coded, from step 13 on")
        self.assertRegex(result.stdout, r"\ncompression starts at step 13\n")
        self.assertEqual([line["compressed_steps"] for line in metrics(self.folder / "run")],
                         [0, 8, 10, 18])
        # What a compressed step saves, also where the first steps saved nothing.
        self.assertRegex(result.stdout, r"\ncompression: [0-9,]+ bytes a step instead of [0-9,]+ "
                         r"\([0-9.]+ times fewer\) for [0-9.]+ ms of arithmetic: pays where a rank "
                         r"sends less than [0-9.]+ [MG]bit/s\n")
        self.assertRegex(result.stdout, r"\nof a step's [0-9.]+ ms [0-9.]+ ms were spent waiting")

    def test_two_runs_have_the_same_bits(self):
        for compressor in ("none", "sign"):
            job = ("--ranks", 4, "--steps", 30, "--compressor", compressor)
            self.train(*job, name="a")
            self.train(*job, name="b")
            self.assertEqual(self.hash_of("a"), self.hash_of("b"))

    @unittest.skipUnless(HAS_MPI, "built without MPI")
    def test_threads_and_mpi_have_the_same_bits(self):
        for compressor, *more in (("none",), ("sign",), ("quantize:bits=4", "--bucket-mb", 0.01),
                                      ("topk:density=0.01", "--feedback", "econtrol:eta=auto"),
                                      ("powersgd:rank=4", "--bucket-mb", 0.01)):
            job = ("--steps", "30", "--compressor", compressor, *more)
            self.train("--ranks", 4, *job, name="threads")
            result = PROGRAM.mpirun(4, "train", *SMALL, *job, "--output", self.folder / "mpi")
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
            self.assertEqual(self.hash_of("threads"), self.hash_of("mpi"))
            ends = [end_of(self.folder / name) for name in ("threads", "mpi")]
            self.assertEqual(ends[0]["bytes_wire"], ends[1]["bytes_wire"])

    def test_processes_that_nobody_launched(self):
        for compressor in ("sign", "powersgd:rank=4", "topk:density=0.1"):
            self.check_processes_that_nobody_launched("--steps", 30, "--compressor", compressor)

    def check_processes_that_nobody_launched(self, *job):
        self.train("--ranks", 2, *job, name="threads")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        ranks = [PROGRAM.start("train", *SMALL, *job, "--output", self.folder / "by-hand",
                               RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
                               LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                 for rank in range(2)]
        for process in ranks:
            out, err = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 0, out + err)
        self.assertEqual(self.hash_of("threads"), self.hash_of("by-hand"))

    @unittest.skipUnless(HAS_MPI, "built without MPI")
    def test_threads_and_mpi_have_the_same_bits_with_dropout(self):
        text = self.folder / "text"
        text.write_text("few bytes over a thin wire, " * 200)
        job = ("--model", "gpt:layers=2,heads=2,width=16,dropout=0.2", "--data",
               f"text:{text},context=16", "--steps", 12, "--batch-size", 4, "--compressor", "sign",
               "--lr", "0.05")
        self.train("--ranks", 2, *job, name="threads")
        result = PROGRAM.mpirun(2, "train", *job, "--output", self.folder / "mpi")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertEqual(self.hash_of("threads"), self.hash_of("mpi"))

    def test_trace_shows_exchanges_while_backward_runs(self):
        trace = self.folder / "trace.json"
        self.train("--ranks", 2, "--steps", 8, "--model", "mlp:hidden=512,512,512", "--bucket-mb",
                   "0.5", "--data", "synthetic:samples=4096,test_samples=64,size=8",
                   "--batch-size", 256, "--trace", trace)
        events = json.loads(trace.read_text())
        spans = [e for e in events if e["ph"] == "X"]
        self.assertEqual({e["pid"] for e in spans}, {0, 1})

        def named(prefix, pid):
            return [(e["ts"], e["ts"] + e["dur"]) for e in spans
                    if e["name"].startswith(prefix) and e["pid"] == pid]

        overlaps = sum(max(b[0], w[0]) < min(b[1], w[1])
                       for b in named("backward", 0) for w in named("bucket", 0))
        self.assertGreater(overlaps, 0)

    def test_print_config_is_a_config(self):
        arguments = ("--ranks", "2", "--compressor", "sign", "--steps", "7")
        text = PROGRAM.run("train", *SMALL, *arguments, "--print-config").stdout
        config = self.folder / "a.ini"
        config.write_text(text)
        again = PROGRAM.run("train", "--config", config, "--print-config").stdout
        self.assertEqual(text, again)
        self.train(*arguments, name="a")
        result = PROGRAM.run("train", "--config", config, "--output", self.folder / "b")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(self.hash_of("a"), self.hash_of("b"))

    def test_a_new_run_moves_an_earlier_one_aside(self):
        self.train("--steps", 5)
        result = self.train("--steps", 6)
        self.assertIn("moved what an earlier run left", result.stdout)
        self.assertTrue((self.folder / "run/earlier-1/checkpoints/step-00000005").is_dir())
        self.assertEqual(end_of(self.folder / "run/earlier-1")["step"], 5)
        self.assertTrue((self.folder / "run/checkpoints/step-00000006").is_dir())

    def test_going_back_moves_the_abandoned_checkpoints_aside(self):
        self.train("--steps", 20, "--checkpoint-every", 10)
        back = self.folder / "run/checkpoints/step-00000010"
        self.train("--steps", 15, "--resume", back)
        self.assertEqual(sorted(os.listdir(self.folder / "run/checkpoints")),
                         ["step-00000010", "step-00000015"])
        self.assertTrue((self.folder / "run/earlier-1/checkpoints/step-00000020").is_dir())

    def test_resume_wants_the_same_seed_and_data(self):
        self.train("--steps", 10)
        for change in (["--seed", 9], ["--data", "synthetic:samples=128,test_samples=64,size=8"]):
            result = self.train("--steps", 12, "--resume", "auto", *change, code=65)
            self.assertRegex(result.stderr, "was made with (seed|training)")
        result = self.train("--steps", 12, "--resume", "auto", "--lr", "0.01")
        self.assertIn("resumed with changes: lr 0.01, was 0.05", result.stdout)

    def test_metrics_go_on_without_doubles(self):
        self.train("--steps", 40, "--checkpoint-every", 20, "--report-every", 5)
        self.train("--steps", 50, "--report-every", 5, "--resume",
                   self.folder / "run/checkpoints/step-00000020")
        steps = [line["step"] for line in metrics(self.folder / "run")]
        self.assertEqual(steps, [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 50])

    def test_tensorboard_shows_the_same_numbers(self):
        job = ("--ranks", 2, "--compressor", "sign", "--report-every", 5)
        self.train(*job, "--steps", 40, "--checkpoint-every", 20)
        before = time.time()
        self.train(*job, "--steps", 30, "--resume", self.folder / "run/checkpoints/step-00000020")
        files = sorted((self.folder / "run/tensorboard").iterdir())
        self.assertEqual(len(files), 2)
        first, second = (tfevents.read(path) for path in files)
        for events, step in ((first, 1), (second, 21)):
            self.assertEqual(events[0]["version"], "brain.Event:2")
            self.assertTrue(events[1]["start"])
            self.assertEqual(events[1]["step"], step)
        for event in second:
            self.assertTrue(before - 1 <= event["wall_time"] <= time.time() + 1)
        # The start of the second file takes back what it reports again.
        events = [e for e in first[2:] if e["step"] <= 20] + second[2:]
        lines = metrics(self.folder / "run")
        reported = [e for e in events if "loss" in e["scalars"]]
        self.assertEqual([e["step"] for e in reported], [line["step"] for line in lines[:-1]])
        for event, line in zip(reported, lines):
            for key in ("loss lr samples_per_second bytes_dense bytes_wire residual_ratio skipped "
                        "epoch").split():
                single = struct.unpack("<f", struct.pack("<f", line[key]))[0]
                self.assertEqual(event["scalars"][key], single, key)
        end = events[-1]
        self.assertEqual(end["step"], 30)
        for key in ("test_accuracy", "test_loss"):
            self.assertAlmostEqual(end["scalars"][key], lines[-1][key], 6)
        # What was abandoned is kept; a run that starts anew leaves nothing of it here.
        self.assertEqual(len(list((self.folder / "run/earlier-1/tensorboard").iterdir())), 1)
        self.train(*job, "--steps", 5)
        self.assertEqual(len(list((self.folder / "run/tensorboard").iterdir())), 1)
        self.assertEqual(len(list((self.folder / "run/earlier-2/tensorboard").iterdir())), 2)

    def test_charts_that_cannot_be_written_cost_a_warning(self):
        (self.folder / "run").mkdir()
        (self.folder / "run/tensorboard").write_text("in the way")
        result = self.train("--steps", 20)
        self.assertEqual(result.stdout.count("warning: cannot write TensorBoard events"), 1)

    def test_metrics_of_an_earlier_run_without_checkpoint_are_kept(self):
        self.train("--steps", 400, "--lr", 1000, "--optimizer", "sgd", code=70)
        before = metrics(self.folder / "run")
        self.train("--steps", 5)
        self.assertEqual(metrics(self.folder / "run/earlier-1"), before)

    def test_the_first_step_of_a_process_rounds_like_any_other(self):
        # The resumed process starts with a batch that is not full, whose products have odd shapes.
        job = ("--ranks", 3, "--compressor", "sign")
        self.train(*job, "--steps", 10)
        self.train(*job, "--steps", 20, "--resume", "auto")
        self.train(*job, "--steps", 20, name="whole")
        self.assertEqual(self.hash_of(), self.hash_of("whole"))

    def test_nothing_left_to_do(self):
        self.train("--steps", 10)
        before = self.hash_of()
        result = self.train("--steps", 5, "--resume", "auto")
        self.assertIn("resumed from", result.stdout)
        self.assertIn("nothing left to train: step 10 of 5", result.stdout)
        self.assertEqual(self.hash_of(), before)


class Lineage(Case):
    """--resume auto goes on from the newest checkpoint of its own."""
    JOB = ("--ranks", 2, "--compressor", "sign")

    def root(self, name="run"):
        return self.folder / name / "checkpoints"

    def check_passed_over(self, step, why, *more):
        self.train(*self.JOB, *more, "--steps", 20, name="whole")
        result = self.train(*self.JOB, *more, "--steps", 20, "--resume", "auto")
        self.assertRegex(result.stdout, rf"warning: .*/step-{step:08d}: {why}; passed over\n")
        self.assertRegex(result.stdout, "resumed from .*/step-00000010 at step 10\n")
        self.assertRegex(result.stdout, "moved what an earlier run left .*: 1 checkpoints")
        self.assertEqual(self.hash_of(), self.hash_of("whole"))
        self.assertEqual(sorted(os.listdir(self.root())), ["step-00000010", "step-00000020"])
        moved = self.folder / "run/earlier-1/checkpoints" / f"step-{step:08d}"
        self.assertTrue(moved.exists())
        return moved

    def test_another_runs_newer_checkpoint_is_passed_over(self):
        for number, (change, why) in enumerate((
                (["--seed", 9], "was made with seed 9, this run has 1"),
                (["--model", "mlp:hidden=16"], "was made with parameters .*, this run has .*"),
                (["--optimizer", "adam"], "was made with optimizer adam, this run has sgd"))):
            with self.subTest(change=change):
                shutil.rmtree(self.folder / "run", ignore_errors=True)
                shutil.rmtree(self.folder / "whole", ignore_errors=True)
                # Also at a step that this run comes to: it must not pass for this run's.
                step = 15 if number else 20
                self.train(*self.JOB, "--steps", 10)
                self.train(*self.JOB, *change, "--steps", step, name="other")
                shutil.copytree(self.root("other") / f"step-{step:08d}",
                                self.root() / f"step-{step:08d}")
                moved = self.check_passed_over(step, why)
                self.assertEqual(PROGRAM.run("verify", moved).returncode, 0)
                shutil.rmtree(self.folder / "other")

    def test_a_link_or_a_copy_does_not_win_by_its_name(self):
        for make in (shutil.copytree, lambda there, name: name.symlink_to(there.resolve())):
            shutil.rmtree(self.folder / "run", ignore_errors=True)
            shutil.rmtree(self.folder / "whole", ignore_errors=True)
            self.train(*self.JOB, "--steps", 10)
            make(self.root() / "step-00000010", self.root() / "step-00000099")
            self.check_passed_over(
                99, "is a link or a copy under another name, of step 10")

    def test_what_a_link_leads_to_is_not_removed_with_it(self):
        self.train(*self.JOB, "--steps", 5, name="other")
        precious = self.root("other") / "step-00000005"
        self.root().mkdir(parents=True)
        (self.root() / "step-00000005").symlink_to(precious)
        self.train(*self.JOB, "--steps", 40, "--checkpoint-every", 10, "--resume", "auto")
        self.assertEqual(sorted(os.listdir(self.root())), ["step-00000030", "step-00000040"])
        self.assertEqual(PROGRAM.run("verify", precious).returncode, 0)

    def test_going_on_from_a_named_one_keeps_the_others_of_other_runs(self):
        self.train(*self.JOB, "--steps", 10)
        self.train(*self.JOB, "--seed", 9, "--steps", 5, name="other")
        shutil.copytree(self.root("other") / "step-00000005", self.root() / "step-00000005")
        self.train(*self.JOB, "--steps", 20, "--resume", self.root() / "step-00000010")
        self.assertTrue((self.folder / "run/earlier-1/checkpoints/step-00000005").is_dir())


    def test_a_copy_by_another_name_may_be_resumed_from(self):
        self.train("--steps", 20, "--checkpoint-every", 10)
        best = self.root() / "best"
        shutil.copytree(self.root() / "step-00000010", best)
        (self.root() / "notes").write_text("mine")
        result = self.train("--steps", 30, "--resume", best)
        self.assertIn(f"resumed from {best} at step 10", result.stdout)
        self.assertNotIn("somebody removed", result.stdout)
        self.assertEqual(sorted(path.name for path in self.root().iterdir()),
                         ["best", "notes", "step-00000010", "step-00000030"])
        self.assertEqual([line["step"] for line in metrics(self.folder / "run")],
                         [10, 20, 30, 30])

    def test_only_damaged_ones_are_no_reason_to_start_anew(self):
        self.train("--steps", 20, "--checkpoint-every", 10)
        for path in self.root().glob("*/model.safetensors"):
            path.write_bytes(path.read_bytes()[:-1])
        result = self.train("--steps", 30, "--resume", "auto", code=65)
        self.assertRegex(result.stderr, "none of the checkpoints in .* is whole; copy one there")
        self.assertFalse((self.folder / "run/earlier-1").exists())

    def test_checkpoints_on_another_disk(self):
        disk = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-", dir="/dev/shm"))
        self.addCleanup(shutil.rmtree, disk, ignore_errors=True)
        (self.folder / "run").mkdir()
        self.root().symlink_to(disk)
        for number in (1, 2, 3):
            self.train("--steps", 5 * number)
            self.assertTrue((disk / f"step-{5 * number:08d}").exists())
        self.assertTrue((disk / "earlier-2/step-00000010").exists())


class Folder(Case):
    def test_a_second_run_is_refused(self):
        with self.running("--steps", 100000):
            for extra in ([], ["--resume", "auto"]):
                result = self.train("--steps", 5, *extra, code=73)
                self.assertRegex(result.stderr, r"\Athinwire: '.*/run' belongs to another run: "
                                 r"process \d+ on host '.+', since 20.* UTC; .*--output\n\Z")
            self.assertFalse((self.folder / "run/earlier-1").exists())
            # The same folder by another name.
            (self.folder / "link").symlink_to(self.folder / "run")
            self.train("--steps", 5, name="link", code=73)
        self.train("--steps", 5)

    def test_a_killed_runs_folder_is_free_at_once(self):
        with self.running("--steps", 100000) as process:
            process.kill()
            process.wait()
        self.assertTrue((self.folder / "run/run.lock").exists())
        start = time.monotonic()
        self.assertNotIn("sign of life", self.train("--steps", 5).stdout)
        self.assertLess(time.monotonic() - start, 30)
        self.assertFalse((self.folder / "run/run.lock").exists())

    def test_ranks_that_do_not_share_the_folder_are_named(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        ranks = []
        for rank in range(2):
            (self.folder / str(rank)).mkdir()
            variables = environment(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
                                    LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                                    MASTER_PORT=port)
            ranks.append(subprocess.Popen(
                [os.path.abspath(PROGRAM.path), "train", *SMALL, "--steps", "20", "--timeout", "4",
                 "--output", "run", "--job-id", "one"], cwd=self.folder / str(rank), env=variables, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        texts = []
        for process in ranks:
            out, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 73, out + err)
            texts.append(err)
        self.assertIn("rank 1 does not see in 'run' what rank 0 wrote there; give a folder that all "
                      "machines share with --output", texts[0])
        self.assertFalse((self.folder / "0/run/metrics.jsonl").exists())

    def test_resuming_before_the_first_checkpoint_keeps_the_metrics(self):
        with self.running("--steps", 100000) as process:
            wait_for(lambda: (self.folder / "run/metrics.jsonl").read_text().count("\n") > 20)
            process.kill()
            process.wait()
        before = (self.folder / "run/metrics.jsonl").read_text()
        result = self.train("--steps", 30, "--resume", "auto")
        self.assertIn("moved what an earlier run left", result.stdout)
        self.assertEqual((self.folder / "run/earlier-1/metrics.jsonl").read_text(), before)
        self.assertEqual([line["step"] for line in metrics(self.folder / "run")], [10, 20, 30, 30])

    def test_metrics_of_other_content_are_not_emptied(self):
        self.train("--steps", 10, name="made")
        resume = ("--resume", "auto")
        for content, keep, more in (("x" * 1000000, False, resume), ("notes", True, resume),
                                    ('{"step": "one"}\n', True, resume),
                                    ("[" * 100000 + "\n", True, ())):
            shutil.rmtree(self.folder / "run", ignore_errors=True)
            shutil.copytree(self.folder / "made", self.folder / "run")
            if not keep:
                shutil.rmtree(self.folder / "run/checkpoints")
            (self.folder / "run/metrics.jsonl").write_text(content)
            result = self.train("--steps", 20, *more)
            self.assertRegex(result.stdout, "moved what an earlier .*metrics.jsonl")
            self.assertEqual((self.folder / "run/earlier-1/metrics.jsonl").read_text(), content)

    def test_what_is_no_file_in_the_place_of_metrics(self):
        (self.folder / "precious").write_text("precious\n")
        self.train("--steps", 10, name="made")
        resume = ("--resume", "auto")
        for make, more in ((os.mkfifo, ()), (os.mkfifo, resume), (os.mkdir, resume),
                           (lambda path: os.symlink("/dev/zero", path), resume),
                           (lambda path: os.symlink(self.folder / "nowhere", path), ()),
                           (lambda path: os.symlink(self.folder / "precious", path), resume)):
            shutil.rmtree(self.folder / "run", ignore_errors=True)
            shutil.copytree(self.folder / "made", self.folder / "run")
            (self.folder / "run/metrics.jsonl").unlink()
            make(self.folder / "run/metrics.jsonl")
            os.symlink(self.folder / "precious", self.folder / "run/metrics.jsonl.partial")
            self.train("--steps", 20, *more)
            self.assertEqual(end_of(self.folder / "run")["step"], 20)
            self.assertEqual((self.folder / "precious").read_text(), "precious\n")
            os.lstat(self.folder / "run/earlier-1/metrics.jsonl")

    def test_a_folder_that_is_removed_while_it_is_written_to(self):
        with self.running("--steps", 100000, "--checkpoint-every", 50) as process:
            shutil.rmtree(self.folder / "run", ignore_errors=True)
            wait_for(lambda: (self.folder / "run/metrics.jsonl").exists())
            seen = len(metrics(self.folder / "run"))
            wait_for(lambda: len(metrics(self.folder / "run")) > seen + 5)
            process.send_signal(signal.SIGUSR1)
            out = self.end(process, 75)
        self.assertEqual(out.count("warning: somebody removed "), 2 + out.count(
            "somebody removed " + str(self.folder / "run/checkpoints")), out)
        self.assertRegex(out, "somebody removed .*metrics.jsonl; metrics go on in a new one")
        self.assertRegex(out, "somebody removed .*tfevents.*; TensorBoard events go on in a new one")
        self.assertTrue(end_of(self.folder / "run")["stopped"])
        (events,) = (self.folder / "run/tensorboard").iterdir()
        self.assertEqual(tfevents.read(events)[0]["version"], "brain.Event:2")

    def test_metrics_that_are_rotated_or_emptied(self):
        path = self.folder / "run/metrics.jsonl"
        with self.running("--steps", 100000) as process:
            os.rename(path, self.folder / "rotated")
            wait_for(path.exists)
            os.truncate(path, 0)
            wait_for(lambda: path.stat().st_size > 2000)
            (self.folder / "new").write_text("mine\n")
            os.rename(self.folder / "new", path)
            wait_for(lambda: path.stat().st_size > 2000)
            process.send_signal(signal.SIGUSR1)
            out = self.end(process, 75)
        for pattern in ("somebody removed", "somebody cut off", "somebody replaced"):
            self.assertEqual(len(re.findall(f"warning: {pattern} .*metrics.jsonl", out)), 1, out)
        lines = path.read_text().splitlines()
        self.assertEqual(lines[0], "mine")
        self.assertEqual(json.loads(lines[-1])["event"], "end")


class Stopping(Case):
    JOB = ("--ranks", 3, "--compressor", "sign", "--steps", 40000, "--report-every", 1)

    def stop_with(self, process, number):
        deadline = time.monotonic() + 60
        while not (self.folder / "run/metrics.jsonl").exists() or not metrics(self.folder / "run"):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        return out + err

    def check_resumed(self, text, returncode):
        self.assertEqual(returncode, 75, text)
        stopped = end_of(self.folder / "run")
        self.assertTrue(stopped["stopped"])
        step = stopped["step"]
        self.assertTrue(stopped["checkpoint"].endswith(f"step-{step:08d}"))
        # Ten steps further, the bits are those of a run without a stop.
        job = list(self.JOB)
        job[job.index("--steps") + 1] = step + 10
        self.train(*job, "--resume", "auto")
        self.train(*job, name="whole")
        self.assertEqual(self.hash_of("run"), self.hash_of("whole"))

    def test_signals_stop_all_ranks_at_the_same_step(self):
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number):
                shutil.rmtree(self.folder / "run", ignore_errors=True)
                process = PROGRAM.start("train", *SMALL_WITHOUT_REPORT, *self.JOB, "--output",
                                        self.folder / "run")
                text = self.stop_with(process, number)
                self.check_resumed(text, process.returncode)
                shutil.rmtree(self.folder / "whole")

    @unittest.skipUnless(HAS_MPI, "built without MPI")
    def test_sigusr1_to_mpirun(self):
        job = list(self.JOB)
        job[1] = 1
        command = [mpirun(), "-np", "3", PROGRAM.path, "train", *SMALL_WITHOUT_REPORT,
                   *map(str, job), "--output", str(self.folder / "run")]
        process = subprocess.Popen(command, env=mpi_environment(), text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        text = self.stop_with(process, signal.SIGUSR1)
        self.check_resumed(text, process.returncode)

    @unittest.skipUnless(HAS_MPI, "built without MPI")
    def test_the_mpirun_script_turns_sigterm_into_a_checkpoint(self):
        script = pathlib.Path(__file__).resolve().parents[2] / "launch/jobs/mpirun.sh"
        variables = {**mpi_environment(), "RANKS": "3", "THINWIRE": PROGRAM.path}
        process = subprocess.Popen(
            [script, *SMALL_WITHOUT_REPORT, *map(str, self.JOB[2:]), "--output",
             str(self.folder / "run")],
            env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        text = self.stop_with(process, signal.SIGTERM)
        self.check_resumed(text, process.returncode)


class Checkpoints(Case):
    def test_flipped_bytes_are_rejected_and_the_previous_one_is_used(self):
        self.train("--ranks", 2, "--steps", 20, "--checkpoint-every", 10, "--compressor", "sign")
        folder = self.folder / "run/checkpoints/step-00000020"
        self.assertEqual(PROGRAM.run("verify", folder).returncode, 0)
        draw = random.Random(1)
        for path in sorted(folder.iterdir()):
            content = path.read_bytes()
            place = draw.randrange(len(content))
            damaged = bytearray(content)
            damaged[place] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            result = PROGRAM.run("verify", folder)
            self.assertEqual(result.returncode, 65, f"{path.name} byte {place}")
            self.assertIn(path.name, result.stderr)
            path.write_bytes(content)
        (folder / "model.safetensors").write_bytes(b"")
        result = self.train("--ranks", 2, "--steps", 21, "--compressor", "sign", "--resume", "auto")
        self.assertRegex(result.stdout, r"warning: .*step-00000020")
        self.assertRegex(result.stdout, r"resumed from .*step-00000010 at step 10")
        self.train("--ranks", 2, "--steps", 21, "--compressor", "sign", name="whole")
        self.assertEqual(self.hash_of("run"), self.hash_of("whole"))

    def test_another_world_size(self):
        self.train("--ranks", 4, "--steps", 10, "--compressor", "sign")
        result = self.train("--ranks", 2, "--steps", 14, "--compressor", "sign", "--resume", "auto")
        self.assertIn("the checkpoint is of 4 ranks, this run has 2", result.stdout)

    def test_the_last_two_are_kept(self):
        self.train("--steps", 50, "--checkpoint-every", 10)
        self.assertEqual(sorted(os.listdir(self.folder / "run/checkpoints")),
                         ["step-00000040", "step-00000050"])

    def small_disk(self, options):
        disk = self.folder / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk],
                                 capture_output=True, check=False).returncode == 0
        if not mounted:
            self.skipTest("mounting a small file system needs root")
        self.addCleanup(subprocess.run, ["umount", "-l", disk], check=False)

    def check_ended_without_its_checkpoint(self, result, reason, name):
        self.assertRegex(result.stderr, r"\Athinwire: the run ended without its last checkpoint: "
                         rf"the checkpoint of step \d+ was not saved: rank \d: .*{reason}.*; ")
        self.assertRegex(result.stdout, rf"warning: .*{reason}.*; trying once more\n")
        self.assertIn("ended without its last checkpoint: test accuracy", result.stdout)
        self.assertNotIn("done: ", result.stdout)
        end = end_of(self.folder / name)
        self.assertIsNone(end["checkpoint"])
        self.assertRegex(end["parameters_hash"], r"\A[0-9a-f]{16}\Z")

    def test_a_full_disk_costs_the_checkpoint_not_the_run(self):
        self.small_disk("size=100k")
        result = self.train("--ranks", 2, "--steps", 20, "--checkpoint-every", 10, "--model",
                            "mlp:hidden=512", name="disk/run", code=73)
        self.check_ended_without_its_checkpoint(result, "No space left on device", "disk/run")

    def test_a_disk_without_inodes_costs_the_checkpoint_not_the_run(self):
        # The disk's root, run, run.lock, metrics and tensorboard's file and folder are six.
        self.small_disk("nr_inodes=9")
        result = self.train("--ranks", 2, "--steps", 20, name="disk/run", code=73)
        self.check_ended_without_its_checkpoint(result, "No space left on device", "disk/run")

    def test_the_last_checkpoint_takes_the_room_of_the_older_one_of_two(self):
        job = ("--ranks", 2, "--checkpoint-every", 10, "--model", "mlp:hidden=512")
        self.train(*job, "--steps", 10, name="measured")
        one = sum(path.stat().st_size // 4096 + 1
                  for path in (self.folder / "measured/checkpoints/step-00000010").iterdir())
        self.small_disk(f"size={4 * (5 * one // 2 + 8)}k")
        result = self.train(*job, "--steps", 30, name="disk/run")
        self.assertRegex(result.stdout, "No space left on device.*; trying once more\n"
                         "warning: removed .*/checkpoints/step-00000010 to make room\n")
        self.assertEqual(sorted(os.listdir(self.folder / "disk/run/checkpoints")),
                         ["step-00000020", "step-00000030"])
        self.assertEqual(
            PROGRAM.run("verify", end_of(self.folder / "disk/run")["checkpoint"]).returncode, 0)

    def test_the_only_checkpoint_is_never_given_up_for_the_last(self):
        job = ("--ranks", 2, "--model", "mlp:hidden=512")
        self.train(*job, "--steps", 10, name="measured")
        one = sum(path.stat().st_size // 4096 + 1
                  for path in (self.folder / "measured/checkpoints/step-00000010").iterdir())
        self.small_disk(f"size={4 * (3 * one // 2 + 8)}k")
        self.train(*job, "--steps", 10, name="disk/run")
        result = self.train(*job, "--steps", 20, "--resume", "auto", name="disk/run", code=73)
        self.assertIn("warning: there is no checkpoint to spare", result.stdout)
        self.assertIn("the run ended without its last checkpoint", result.stderr)
        self.assertEqual(os.listdir(self.folder / "disk/run/checkpoints"), ["step-00000010"])

    def test_a_limit_on_files_costs_the_checkpoint_not_the_run(self):
        # SIGXFSZ would end it; Python ignores that signal, and its children need not.
        command = ["bash", "-c", 'trap - XFSZ; ulimit -f 50; exec "$@"', "bash", PROGRAM.path,
                   "train", "--model", "mlp:hidden=512", *SMALL[2:], "--steps", "20", "--ranks", "2",
                   "--output", str(self.folder / "run")]
        result = subprocess.run(command, env=environment(), text=True, capture_output=True,
                                timeout=120, check=False)
        self.assertEqual(result.returncode, 73, result.stdout + result.stderr)
        self.check_ended_without_its_checkpoint(result, "File too large", "run")

    def test_files_in_the_place_of_folders(self):
        (self.folder / "run").mkdir()
        (self.folder / "run/checkpoints").write_text("mine")
        result = self.train("--steps", 20, code=73)
        self.assertIn("run/checkpoints' is no folder, but checkpoints go there", result.stderr)
        self.assertEqual((self.folder / "run/checkpoints").read_text(), "mine")
        # And while it trains.
        (self.folder / "run/checkpoints").unlink()
        with self.running("--steps", 1000) as process:
            (self.folder / "run/checkpoints").mkdir()
            in_the_way = self.folder / "run/checkpoints/step-00001000"
            in_the_way.write_text("mine")
            self.assertIn("the run ended without its last checkpoint", self.end(process, 73))
        self.assertEqual(in_the_way.read_text(), "mine")
        self.assertEqual(end_of(self.folder / "run")["step"], 1000)

    def test_a_checkpoint_that_was_removed_is_said_and_written_again(self):
        with self.running("--steps", 100000, "--checkpoint-every", 200) as process:
            wait_for(lambda: (self.folder / "run/checkpoints/step-00000200/manifest.json").exists())
            shutil.rmtree(self.folder / "run/checkpoints", ignore_errors=True)
            process.send_signal(signal.SIGUSR1)
            out = self.end(process, 75)
        self.assertRegex(out, "warning: somebody removed .*/checkpoints/step-[0-9]+, the last ")
        self.assertEqual(
            PROGRAM.run("verify", end_of(self.folder / "run")["checkpoint"]).returncode, 0)

    def test_python_reads_the_weights(self):
        try:
            from safetensors.numpy import load_file
        except ImportError:
            self.skipTest("this Python has no safetensors package")
        self.train("--steps", 5)
        tensors = load_file(self.folder / "run/checkpoints/step-00000005/model.safetensors")
        self.assertEqual(tensors["fc1.weight"].shape, (24, 64))


class BadInput(Case):
    def test_models_and_data_that_do_not_go_together(self):
        text = self.folder / "text"
        text.write_text("few bytes over a thin wire, " * 200)
        for model, data in (("mlp", f"text:{text}"), ("convnet", f"text:{text},context=32"),
                            ("gpt", "synthetic:samples=8,test_samples=8,size=8")):
            result = self.train("--model", model, "--data", data, code=2)
            self.assertIn(f"--model {model} cannot", result.stderr)

    def test_table(self):
        good = self.folder / "good"
        good.mkdir()
        images = idx((6, 28, 28), [7] * 6 * 784)
        labels = idx((6,), [0, 1, 2, 3, 4, 5])
        names = {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": labels,
                 "t10k-images-idx3-ubyte": images, "t10k-labels-idx1-ubyte": labels}
        for name, content in names.items():
            (good / name).write_bytes(content)

        def data(change, content):
            folder = self.folder / f"data-{change}-{len(content)}"
            shutil.copytree(good, folder)
            (folder / change).unlink()
            name = change + (".gz" if content[:2] == b"\x1f\x8b" else "")
            (folder / name).write_bytes(content)
            return ["--data", f"fashion-mnist:{folder}"]

        config = self.folder / "bad.ini"
        a_file = self.folder / "file"
        a_file.write_text("not a folder")
        image_name, label_name = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"

        def with_config(text):
            path = self.folder / f"{abs(hash(text))}.ini"
            path.write_text(text)
            return ["--config", path]

        cases = [
            # arguments, exit code, what stderr says
            (["--compressor", "sing"], 2, r"'sing' is not known; did you mean 'sign'"),
            (["--compressor", "sign:blok=8"], 2, r"unknown key 'blok'; did you mean 'block'"),
            (["--compressor", "sign:block=7"], 2, r"multiple of 8|from 8"),
            (["--compressor", "sign:block"], 2, r"is no KEY=VALUE"),
            (["--compressor", "none", "--feedback", "error_feedback"], 2,
             r"makes no sense; .*none x none x all_reduce"),
            (["--compressor", "sign", "--exchange", "two"], 2, r"--exchange 'two' is not known"),
            (["--compressor", "sign", "--exchange", "all_reduce"], 2, r"makes no sense"),
            (["--dense-names", "a,,b"], 2, r"a pattern of names .* is empty"),
            (["--start-iter", "-1"], 2, r"--start-iter is '-1'"),
            (["--feedback", "err"], 2, r"--feedback 'err' is not known"),
            (["--model", "resnet9"], 2, r"did you mean 'resnet8'"),
            (["--model", "mlp:hidden=0"], 2, r"'hidden'"),
            (["--model", "mlp:width=3"], 2, r"unknown key 'width'"),
            (["--data", "mnist"], 2, r"'mnist' is not known"),
            (["--data", "synthetic:samples=0"], 2, r"samples"),
            (["--optimizer", "sgdd"], 2, r"did you mean 'sgd'"),
            (["--optimizer", "adam:beta1=1.5"], 2, r"beta1"),
            (["--lr-schedule", "cosin"], 2, r"did you mean 'cosine'"),
            (["--lr-schedule", "step"], 2, r"every"),
            (["--lr", "nan"], 2, r"--lr"),
            (["--clip-norm", "-1"], 2, r"--clip-norm"),
            (with_config("lr = fast\n"), 2, r"lr.* is 'fast'"),
            (with_config("learning-rate = 1\n"), 2, r"learning-rate"),
            (with_config("momentun = .9\n"), 2, r"momentum"),
            (["--data", f"fashion-mnist:{self.folder / 'nowhere'}"], 65, r"dataset-fashion-mnist"),
            (data(image_name, b""), 65, image_name),
            (data(image_name, images[:-1]), 65, image_name),
            (data(image_name, images + b"x"), 65, image_name),
            (data(image_name, b"PNG" + images), 65, image_name),
            (data(image_name, gzip.compress(images)[:-9]), 65, image_name),
            (data(label_name, idx((5,), [0, 1, 2, 3, 4])), 65, r"labels"),
            (data(label_name, idx((6,), [0, 1, 2, 3, 4, 10])), 65, label_name),
            (data(label_name, idx((6,), [0] * 24, 0x0C)), 65, label_name),
            (["--resume", self.folder / "nowhere"], 65, r"no such checkpoint"),
            (["--resume", a_file], 65, r"file"),
            (["--output", a_file / "sub"], 73, r"cannot prepare the output folder"),
            (["--trace", self.folder / "missing/trace.json", "--steps", "1"], 74,
             r"cannot write the trace"),
        ]
        for arguments, code, pattern in cases:
            with self.subTest(arguments=[str(a) for a in arguments]):
                base = ["--model", "mlp:hidden=8", "--data", "synthetic:samples=64,size=8",
                        "--steps", "2", "--ranks", "2", "--output", self.folder / "run"]
                given = {a for a in arguments if str(a).startswith("--")}
                kept = [x for pair in zip(base[::2], base[1::2]) if pair[0] not in given
                        for x in pair]
                result = PROGRAM.run("train", *kept, *arguments)
                self.assertEqual(result.returncode, code, result.stdout + result.stderr)
                self.assertRegex(result.stderr, r"\Athinwire: ")
                self.assertRegex(result.stderr, pattern)
                self.assertNotIn("bug:", result.stderr)

    @unittest.skipUnless(HAS_MPI, "built without MPI")
    def test_an_error_that_all_ranks_share_is_said_once(self):
        result = PROGRAM.mpirun(2, "train", *SMALL, "--steps", 2, "--output", self.folder / "run",
                                "--resume", self.folder / "nowhere")
        self.assertEqual(result.returncode, 65, result.stderr)
        self.assertEqual(result.stderr.count("no such checkpoint"), 1)

    @unittest.skipUnless(HAS_MPI, "built without MPI")
    def test_a_stopped_rank_ends_the_job_after_the_timeout(self):
        command = [mpirun(), "-np", "3", PROGRAM.path, "train", *SMALL, "--steps", "1000000",
                   "--timeout", "5", "--output", str(self.folder / "run")]
        job = subprocess.Popen(command, env=mpi_environment(), text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
        end = time.monotonic() + 60
        while not (self.folder / "run/metrics.jsonl").exists():
            self.assertIsNone(job.poll(), "the job ended by itself")
            self.assertLess(time.monotonic(), end, "no metrics")
            time.sleep(0.05)
        ranks = subprocess.run(["pgrep", "-P", str(job.pid)], text=True, capture_output=True,
                               check=False).stdout.split()
        os.kill(int(ranks[-1]), signal.SIGSTOP)
        _, err = job.communicate(timeout=60)
        self.assertEqual(job.returncode, 71, err)
        self.assertRegex(err, r"rank \d.* has not been heard from for \d+\.\d s")

    @unittest.skipUnless(HAS_MPI, "built without MPI")
    def test_ranks_under_mpirun(self):
        result = PROGRAM.mpirun(2, "train", *SMALL, "--ranks", 2, "--steps", 2)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("--ranks", result.stderr)

    @unittest.skipUnless(HAS_MPI, "built without MPI")
    def test_an_mpi_that_finds_other_processes_than_the_launcher_started(self):
        # What happens under the mpirun of another MPI: each process would be alone.
        result = PROGRAM.run("train", *SMALL, "--output", self.folder / "run",
                             OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="2",
                             OMPI_COMM_WORLD_LOCAL_RANK="0")
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("MPI finds rank 0 of 1, but mpirun started rank 0 of 2", result.stderr)

    @unittest.skipUnless(HAS_MPI, "built without MPI")
    def test_different_configurations_are_a_diff_of_keys(self):
        common = ["train", *SMALL, "--steps", "3", "--output", str(self.folder / "run")]
        other = [a if a != "0.05" else "0.1" for a in common]
        command = [mpirun(), "-np", "1", PROGRAM.path, *common, ":", "-np", "1", PROGRAM.path,
                   *other, "--seed", "2"]
        start = time.monotonic()
        result = subprocess.run(command, env=mpi_environment(), text=True, capture_output=True,
                                timeout=60, check=False)
        self.assertLess(time.monotonic() - start, 30)
        self.assertEqual(result.returncode, 78, result.stdout + result.stderr)
        self.assertIn("lr: 0.05 (rank 0), 0.1 (rank 1)", result.stderr)
        self.assertIn("seed: 1 (rank 0), 2 (rank 1)", result.stderr)
        self.assertNotIn("model:", result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=1)
