"""bits.py and speed.py: their tables and verdicts, on numbers made up by hand."""

import contextlib
import io
import pathlib
import re
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import before  # noqa: E402
import bits  # noqa: E402
import speed  # noqa: E402


class Bits(unittest.TestCase):
    def test_the_list(self):
        names = [training.name for training in bits.TRAININGS]
        self.assertGreaterEqual(len(names), 24)
        self.assertEqual(len(names), len(set(names)))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            bits.list_trainings(bits.TRAININGS)
        self.assertEqual(re.findall(r"^\S+$", out.getvalue(), re.MULTILINE), names)

    def test_every_exception_is_of_some_training(self):
        for pattern in bits.EXCEPTIONS:
            self.assertTrue(bits.parse(["--only", pattern]).trainings, pattern)

    def test_verdicts(self):
        listed = next(t.name for t in bits.TRAININGS if bits.reason(t.name)) if bits.EXCEPTIONS \
            else None
        self.assertEqual(bits.verdict("mlp-dense-2", "a", "a"), "equal")
        self.assertEqual(bits.verdict("mlp-dense-2", "a", "b"), "DIFFERS")
        if listed:
            self.assertEqual(bits.verdict(listed, "a", "a"), "equal")
            self.assertEqual(bits.verdict(listed, "a", "b"), "differs (listed)")

    def test_commands(self):
        def command(training):
            return " ".join(map(str, bits.command_of(pathlib.Path("B"), training, "/t/text")))

        threads = bits.Training("x", 3, "--data text:TEXT,context=4 --steps 7")
        self.assertEqual(command(threads), "B/thinwire train --steps 7 --batch-size 16 "
                         "--report-every 8 --device cpu --data text:/t/text,context=4 --ranks 3")
        self.assertEqual(bits.half(threads), "3")
        self.assertEqual(len(bits.places(threads)), 1)
        sockets = threads._replace(over="sockets")
        self.assertNotIn("--ranks", command(sockets))
        self.assertEqual([place["RANK"] for place in bits.places(sockets)], ["0", "1", "2"])
        attached = bits.Training("y", 2, "freeze=true", kind="attached")
        self.assertEqual(command(attached), "B/tests/redesign/attached ranks=2 freeze=true")

    def test_a_program_that_fails(self):
        with self.assertRaisesRegex(bits.Failed, "ended with 3\nsaid"):
            bits.run(["sh", "-c", "echo said; exit 3"], [{}, {}])


class Before(unittest.TestCase):
    def test_a_file_with_that_text_is_left_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "below/file"
            before.write_if_other(file, "a")
            first = file.stat().st_mtime_ns
            before.write_if_other(file, "a")
            self.assertEqual(file.stat().st_mtime_ns, first)
            before.write_if_other(file, "b")
            self.assertEqual(file.read_text(), "b")

    def test_a_cache(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "CMakeCache.txt").write_text("// a\nTHINWIRE_MPI:STRING=AUTO\nEMPTY:PATH=\n")
            self.assertEqual(before.cached(folder), {"THINWIRE_MPI": "AUTO", "EMPTY": ""})


class Speed(unittest.TestCase):
    def verdict(self, rounds):
        return speed.summarise("x", rounds)["verdict"]

    def test_everybody_is_first_as_often(self):
        self.assertEqual([speed.order(number) for number in range(4)],
                         [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]])

    def test_verdicts(self):
        self.assertEqual(self.verdict([[100, 100, 103]] * 5), "OK")
        self.assertEqual(self.verdict([[100, 100, 103.1]] * 5), "SLOWER")
        self.assertEqual(self.verdict([[100, 100, 50]] * 5), "OK")
        # Old against old is farther apart than that, in either direction.
        self.assertEqual(self.verdict([[100, 110, 108], [100, 90, 108]] * 3), "OK")
        self.assertEqual(self.verdict([[100, 110, 130], [100, 90, 130]] * 3), "SLOWER")
        # One bad round does not count.
        self.assertEqual(self.verdict([[100, 100, 100]] * 8 + [[100, 100, 200]]), "OK")

    def test_ratios_are_of_rounds(self):
        # The second round was slow for all.
        row = speed.summarise("x", [[100, 100, 101], [200, 200, 202], [100, 100, 101]])
        self.assertEqual(row["new_to_old"], [1.01] * 3)
        self.assertEqual(row["old_to_old"], [1] * 3)
        self.assertIn("1.010 (1.010 to 1.010)", speed.table([row]))

    def test_lines_of_a_program(self):
        lines = ("avx512, 0.2 M floats, 1 rounds\n"
                 "sign, 1024:   encode    0.182 ns/element    0.95 x\n"
                 "square     P Q^T        4.52 ms   0.50 x\n"
                 "avx2, 0.2 M floats, 1 rounds\n"
                 "sign, 1024:   encode    0.5 ns/element    0.95 x\n")
        self.assertEqual(speed.read_lines(lines), {"sign, 1024: encode": 0.182,
                                                   "square P Q^T": 4.52})

    def test_one_round(self):
        self.assertEqual(speed.quartiles([2]), [2, 2, 2])


if __name__ == "__main__":
    unittest.main()
