"""`thinwire bench all-reduce`: the table, the JSON, and that what it counts is right."""

import json
import os
import pathlib
import re
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from support import Program, mpirun  # noqa: E402

PROGRAM = Program(sys.argv.pop(1) if len(sys.argv) > 1 else os.environ["THINWIRE_PROGRAM"])
HAS_MPI = mpirun() is not None and "off" not in re.search(
    r"MPI\s+(.*)", PROGRAM.run("info").stdout).group(1)
QUICK = ["--iterations", "2", "--warmup", "1", "--min-bytes", "64", "--max-bytes", "4K",
         "--factor", "8"]
SIZES = [64, 512, 4096]


class Bench(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = pathlib.Path(folder.name) / "result.json"

    def check(self, result, ranks, redop):
        """Table and JSON agree with each other; returns the JSON."""
        self.assertEqual(result.returncode, 0, result.stderr)
        document = json.loads(self.file.read_text())
        self.assertEqual(document["ranks"], ranks)
        rows = [line.split() for line in result.stdout.splitlines() if not line.startswith("#")]
        self.assertEqual([int(row[0]) for row in rows], SIZES)
        for row, entry in zip(rows, document["results"]):
            self.assertEqual(row[1:4], [str(entry["size"] // 4), "float", redop])
            self.assertEqual(float(row[4]), round(entry["time_us"], 1))
            self.assertAlmostEqual(entry["algbw"], entry["size"] / entry["time_us"] / 1e3, 9)
            self.assertAlmostEqual(entry["busbw"], entry["algbw"] * 2 * (ranks - 1) / ranks, 9)
            self.assertEqual((row[7], entry["wrong"]), ("0", 0))
            self.assertLessEqual(entry["min_us"], entry["median_us"])
            self.assertGreater(entry["in_collectives_us"], 0)
            self.assertLessEqual(entry["in_collectives_us"], entry["time_us"])
        self.assertIn("# wrong values: 0 OK", result.stdout)
        return document

    def test_plain_sum(self):
        result = PROGRAM.run("bench", "all-reduce", "--ranks", 4, *QUICK, "--json", self.file)
        document = self.check(result, 4, "sum")
        for entry in document["results"]:
            # To the owners and back: every other share once, one's own three times.
            self.assertEqual(entry["wire_bytes"], 2 * 3 / 4 * entry["size"])
        # The check, the warm-up and the runs; besides, a few small messages.
        runs = sum(4 * entry["wire_bytes"] for entry in document["results"])
        self.assertEqual(len(document["wire_bytes_total"]), 4)
        for total in document["wire_bytes_total"]:
            self.assertTrue(runs < total < runs + 2000, (runs, total))

    def test_one_bit_mean(self):
        result = PROGRAM.run("bench", "all-reduce", "--ranks", 2, *QUICK, "--compressor",
                             "sign:block=64", "--json", self.file)
        document = self.check(result, 2, "mean")
        # A bit for each value and 4 bytes for each 64, half of it there and half of it back.
        self.assertEqual(document["results"][-1]["wire_bytes"], 1024 / 8 + 4 * 1024 / 64)

    def test_the_tensors_of_resnet50(self):
        count = 25_557_032
        for compressor, redop in (("none", "sum"), ("sign", "mean")):
            result = PROGRAM.run("bench", "all-reduce", "--shapes", "resnet50", "--ranks", 2,
                                 "--iterations", 1, "--warmup", 0, "--compressor", compressor,
                                 "--json", self.file)
            self.assertEqual(result.returncode, 0, result.stderr)
            document = json.loads(self.file.read_text())
            self.assertEqual(document["shapes"], "resnet50")
            row, = document["results"]
            self.assertEqual((row["size"], row["redop"], row["wrong"]), (4 * count, redop, 0))
        # 54,120 values are biases and norms, which travel as they are; of the others a bit for each
        # and 4 bytes for each 1024, which ends of tensors can only add to.
        floor = 4 * 54_120 + (count - 54_120) * (1 / 8 + 4 / 1024)
        self.assertTrue(floor <= row["wire_bytes"] < 1.01 * floor, (floor, row["wire_bytes"]))

    @unittest.skipUnless(HAS_MPI, "built without MPI")
    def test_under_mpirun(self):
        result = PROGRAM.mpirun(2, "bench", "all-reduce", *QUICK, "--json", self.file)
        document = self.check(result, 2, "sum")
        self.assertEqual([entry["wire_bytes"] for entry in document["results"]], SIZES)

    def test_bad_arguments(self):
        for arguments, message in (
                ([], "bench knows all-reduce, not ''; "),
                (["all-gather"], "bench knows all-reduce, not 'all-gather'; "),
                (["all-reduce", "--iteration", 3], r"unknown flag '--iteration'; did you mean "
                 r"'--iterations'\?"),
                (["all-reduce", "--ranks"], "--ranks lacks its value; "),
                (["all-reduce", "--ranks", 2, "--ranks=2"], "--ranks is given twice; "),
                (["all-reduce", "--min-bytes", "3"], "--min-bytes is '3'; give a whole number "),
                (["all-reduce", "--max-bytes", "1T"], "--max-bytes is '1T'; give a whole number "),
                (["all-reduce", "--min-bytes", "1M", "--max-bytes", "1K"],
                 "--min-bytes is 1048576, more than --max-bytes, 1024; "),
                (["all-reduce", "--compressor", "sing"], "compressor.*did you mean 'sign'"),
                (["all-reduce", "--shapes", "resnet5"], "did you mean 'resnet50'"),
                (["all-reduce", "--shapes", "resnet50", "--max-bytes", "1K"],
                 "--max-bytes is given, but --shapes resnet50 has one size; "),
                (["all-reduce", "--bucket-mb", "1"], "--shapes flat is one bucket; "),
                (["all-reduce", "--factor", 1], "--factor is '1'; ")):
            result = PROGRAM.run("bench", *arguments)
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertRegex(result.stderr, re.compile(r"\Athinwire: .*" + message))
            self.assertEqual(result.stdout, "")

    def test_a_file_that_cannot_be_written(self):
        result = PROGRAM.run("bench", "all-reduce", *QUICK, "--json",
                             self.file.parent / "missing/a.json")
        self.assertEqual(result.returncode, 73, result.stderr)

    def test_a_table_that_is_not_written(self):
        for name, result in PROGRAM.run_where_nobody_reads(
                "bench", "all-reduce", "--ranks", 2, *QUICK, "--json", self.file):
            with self.subTest(stdout=name):
                self.assertEqual(
                    (result.returncode, result.stderr),
                    (73, "thinwire: cannot write to stdout; check where it goes\n"))
                # What was measured is kept nevertheless.
                self.assertEqual(len(json.loads(self.file.read_text())["results"]), len(SIZES))
                self.file.unlink()
        result = PROGRAM.run("bench", "all-reduce", *QUICK, "--json", "/dev/full")
        self.assertEqual(result.returncode, 73, result.stderr)

    def test_help(self):
        for arguments in (["bench", "--help"], ["help", "bench"], ["bench", "all-reduce",
                                                                   "--help"]):
            result = PROGRAM.run(*arguments)
            self.assertEqual(result.returncode, 0)
            self.assertIn("Usage: thinwire bench all-reduce", result.stdout)


if __name__ == "__main__":
    unittest.main()
