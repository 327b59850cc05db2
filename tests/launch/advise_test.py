"""Runs `thinwire advise`: what it prints and writes. That its predictions are true is for
tests/bench/advise_check.py."""

import json
import pathlib
import re
import shutil
import sys
import tempfile
import unittest

from support import SMALL, Program, end_of, mpirun

PROGRAM = Program(sys.argv.pop(1))
HAS_MPI = mpirun() is not None and "off" not in re.search(
    r"MPI +(.*)", PROGRAM.run("info").stdout).group(1)


class Advise(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def advise(self, *arguments, code=0):
        result = PROGRAM.run("advise", *SMALL, "--device", "cpu", "--repeats", 3, "--output",
                             self.folder / "run", *arguments)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result

    def test_over_threads(self):
        file = self.folder / "advice.json"
        result = self.advise("--ranks", 3, "--compressors", "sign:block=64,none", "--json", file)
        self.assertRegex(result.stdout, r"\nlink: all_gather [0-9.]+ ms and ")
        self.assertRegex(result.stdout, r"\nbest: --compressor (sign|none)")
        advice = json.loads(file.read_text())
        self.assertEqual(advice["ranks"], 3)
        rows = {row["compressor"]: row for row in advice["compressors"]}
        self.assertEqual(set(rows), {"sign:block=64", "none"})
        self.assertIn(advice["best"], rows)
        self.assertEqual(rows["none"]["pays_below"], "never")
        pays = rows["sign:block=64"]["pays_below"]
        self.assertTrue(isinstance(pays, float) or pays in ("never", "any rate"), pays)
        # The bytes are those of a training.
        for compressor, row in rows.items():
            output = self.folder / compressor[:4]
            PROGRAM.run("train", *SMALL, "--ranks", 3, "--steps", 4, "--compressor", compressor,
                        "--output", output)
            self.assertEqual(row["wire_bytes"], round(end_of(output)["bytes_wire"]), compressor)
            for key in ("arithmetic_seconds", "network_seconds", "local_seconds", "step_seconds"):
                self.assertGreater(row[key], 0, key)
            self.assertGreater(row["step_seconds"], row["local_seconds"] / 2)
        self.assertFalse((self.folder / "run").exists())

    @unittest.skipUnless(HAS_MPI, "built without MPI")
    def test_over_mpi(self):
        file = self.folder / "advice.json"
        result = PROGRAM.mpirun(2, "advise", *SMALL, "--device", "cpu", "--repeats", 3, "--json",
                                file)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertEqual(len(json.loads(file.read_text())["compressors"]), 4)

    def test_what_cannot_be(self):
        self.assertIn("one rank sends nothing", self.advise("--ranks", 1, code=2).stderr)
        self.assertIn("did you mean 'sign'",
                      self.advise("--ranks", 2, "--compressors", "none,sing", code=2).stderr)
        self.assertIn("--compressors is 'none,'",
                      self.advise("--ranks", 2, "--compressors", "none,", code=2).stderr)
        self.advise("--ranks", 2, "--json", self.folder / "no/where", code=73)

    def test_advice_that_is_not_written(self):
        for name, result in PROGRAM.run_where_nobody_reads(
                "advise", *SMALL, "--device", "cpu", "--repeats", 3, "--ranks", 2, "--compressors",
                "none"):
            with self.subTest(stdout=name):
                self.assertEqual(
                    (result.returncode, result.stderr),
                    (73, "thinwire: cannot write to stdout; check where it goes\n"))


if __name__ == "__main__":
    unittest.main()
