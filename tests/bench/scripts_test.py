"""The arithmetic of the comparisons through the network lab, on numbers made up by hand."""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import compare_all_reduce  # noqa: E402
import end_to_end  # noqa: E402
import lab  # noqa: E402


class Lab(unittest.TestCase):
    def test_launchers(self):
        self.assertEqual([lab.launcher_of(word) for word in ("auto", "mpi", "sockets")],
                         ["mpirun", "mpirun", "each"])

    def test_sent_bytes_is_a_count(self):
        first = lab.sent_bytes()
        self.assertGreaterEqual(lab.sent_bytes(), first)


class CompareAllReduce(unittest.TestCase):
    def test_a_table(self):
        rows = [{"ranks": 2, "rate": "1gbit", "subject": "sign", "median_ms": 30.0,
                 "times_ms": [29, 31], "to_gloo": 28.5, "wire_bytes": 3.5e6,
                 "arithmetic_us": 4200, "counted_to_metered": 1.002}]
        head, line = compare_all_reduce.table(rows, "gloo").splitlines()
        self.assertEqual(line.split(), ["2", "1gbit", "sign", "30.0", "29.0", "31.0", "28.500",
                                        "3.50", "1.002", "4.2"])
        self.assertIn("x gloo", head)


class EndToEnd(unittest.TestCase):
    TASK = {"model": "mlp", "batch": 32}

    def test_the_first_interval_does_not_count(self):
        run = {"samples_per_second": [1, 100, 300, 200], "wire_bytes": [9, 5, 5, 6]}
        self.assertEqual(end_to_end.steady(run), {"samples_per_second": 200, "wire_bytes": 5})

    def test_processes_at_the_same_time_add_up(self):
        runs = [{"parameters": 7, "samples_per_second": [1, 2], "wire_bytes": [0, 0]},
                {"parameters": 7, "samples_per_second": [10, 20], "wire_bytes": [0, 0]}]
        self.assertEqual(end_to_end.together(runs)["samples_per_second"], [11, 22])

    def test_ratios_are_of_rounds(self):
        def rounds(*rates):
            return [{"samples_per_second": rate, "wire_bytes": 8} for rate in rates]

        # The second round was slow for all.
        rows = end_to_end.summarise({"sign": rounds(400, 100, 440), "ddp": rounds(100, 25, 100),
                                     "alone": rounds(500, 100, 440)}, self.TASK, 4)
        sign = rows[0]
        self.assertEqual((sign["samples_per_second"], sign["least"], sign["most"]), (400, 100, 440))
        self.assertEqual(sign["step_ms"], 1e3 * 4 * 32 / 400)
        self.assertEqual(sign["to_ddp"], 4)
        self.assertEqual(sign["to_alone"], 1)
        self.assertNotIn("to_ddp-bf16", sign)
        self.assertIn(" 4.00 ", end_to_end.table(rows))

    def test_the_wire_of_a_dense_sum(self):
        # 1000 floats, 4 ranks: 6000 bytes, 48,000 bits at 957,000 bits in a second.
        self.assertAlmostEqual(end_to_end.dense_wire_ms(1000, 4, "1mbit"), 48 / .957)
        self.assertAlmostEqual(end_to_end.dense_wire_ms(1000, 4, "1gbit"), .048 / .957)

    def test_where_the_time_goes(self):
        events, clock = [{"ph": "M", "pid": 0, "name": "thread_name"}], 0
        for step in range(3):
            for name, ms in (("forward", 1), ("backward", 4 if step else 100), ("update", 2)):
                for rank in (0, 1):
                    events.append({"ph": "X", "pid": rank, "name": name, "ts": clock * 1e3,
                                   "dur": ms * 1e3})
                clock += ms + 1  # and 1 ms of waiting behind each
        self.assertEqual(end_to_end.spent(events, 3),
                         {"forward": 1, "backward": 4, "update": 2, "step": 9.5})

    def test_the_text_has_the_vocabulary(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "text"
            end_to_end.write_text(file)
            self.assertEqual(len(set(file.read_bytes())), end_to_end.VOCABULARY)

    def test_every_subject_has_a_way_to_run(self):
        self.assertEqual(set(end_to_end.SUBJECTS),
                         {*end_to_end.COMPRESSORS, *end_to_end.TORCH, "alone"})


if __name__ == "__main__":
    unittest.main()
