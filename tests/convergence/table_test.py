"""table.py: what it runs, what it keeps, and the arithmetic of its tables."""

import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import table  # noqa: E402

EXPERIMENT = {"title": "A model", "score": "accuracy", "arguments": "--model mlp"}
METHODS = {"none": "--compressor none", "sign": "--compressor sign", "bad": "--compressor bad",
           "wild": "--compressor wild"}

# Trains nothing: writes its arguments to FOLDER/calls, and a report whose accuracy is made of the
# seed and of whether the compressor is "none".
PROGRAM = """#!{python}
import json, os, sys
arguments = sys.argv[1:]
with open("{folder}/calls", "a") as calls:
    calls.write(" ".join(arguments) + "\\n")
if "bad" in arguments:
    sys.exit("thinwire: no such compressor")
if "wild" in arguments:
    print("thinwire: 50 steps in a row were rolled back: x", file=sys.stderr)
    sys.exit(70)
value = lambda flag: arguments[arguments.index(flag) + 1]
os.makedirs(value("--output"))
end = {{"event": "end", "test_accuracy": .9 + int(value("--seed")) / 100 -
        (.005 if value("--compressor") != "none" else 0), "test_loss": 1, "seconds": 1800,
        "bytes_dense": 300, "bytes_wire": 10, "skipped": 0, "parameters_hash": "0"}}
with open(value("--output") + "/metrics.jsonl", "w") as file:
    file.write(json.dumps({{"step": 1}}) + "\\n" + json.dumps(end) + "\\n")
"""


class Table(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.program = self.folder / "thinwire"
        self.program.write_text(PROGRAM.format(python=sys.executable, folder=self.folder))
        self.program.chmod(0o755)
        self.results = self.folder / "results.json"

    def collect(self, experiment=None, seeds=(1, 2), methods=("none", "sign")):
        before = len(self.calls())
        failed = table.collect(self.program, {"m": experiment or EXPERIMENT},
                               {name: METHODS[name] for name in methods}, seeds,
                               table.Results(self.results), self.folder, lambda line: None)
        return self.calls()[before:], failed

    def calls(self):
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def row(self, method, experiment=None, seeds=(1, 2)):
        text = table.section("m", experiment or EXPERIMENT, METHODS, seeds,
                             table.Results(self.results))
        return next(line for line in text.splitlines() if line.startswith(f"| {method} |"))

    def test_an_experiment_may_name_its_methods(self):
        some = {**EXPERIMENT, "methods": ["none"]}
        calls, _ = self.collect(some)
        self.assertEqual(len(calls), 2)
        text = table.section("m", some, METHODS, (1, 2), table.Results(self.results))
        self.assertIn("| none |", text)
        self.assertNotIn("| sign |", text)

    def test_runs_each_once_seed_by_seed(self):
        calls, failed = self.collect()
        self.assertEqual(failed, {})
        self.assertEqual([call.split(" --report-every")[0] for call in calls],
                         [f"train --model mlp --compressor {compressor} --seed {seed}"
                          for seed in (1, 2) for compressor in ("none", "sign")])
        self.assertEqual(self.collect()[0], [])

    def test_runs_what_is_lacking_or_has_changed(self):
        self.collect(seeds=(1,))
        self.assertEqual(len(self.collect(seeds=(1, 2))[0]), 2)
        changed = {**EXPERIMENT, "arguments": "--model mlp --lr 1"}
        self.assertEqual(len(self.collect(changed, seeds=(1,))[0]), 2)

    def test_a_failure_is_named_and_tried_again(self):
        for _ in range(2):
            calls, failed = self.collect(seeds=(1,), methods=("none", "bad"))
            self.assertIn("no such compressor", failed["m/bad/1"])
        self.assertEqual(len(calls), 1)
        self.assertEqual(self.row("bad"), "| bad |  |  |  |  |  |  |")

    def test_divergence_is_a_result(self):
        self.collect(methods=("none", "wild"))
        self.assertEqual(self.collect(methods=("none", "wild")), ([], {}))
        self.assertEqual(self.row("wild"), "| wild | diverged | diverged |  |  |  |  |")

    def test_rows(self):
        self.collect()
        self.assertEqual(self.row("none"), "| none | 91.00 | 92.00 | 91.50 |  | 30.0 | 1.00 |")
        self.assertEqual(self.row("sign"),
                         "| sign | 90.50 | 91.50 | 91.00 | -0.50 ± 0.00 | 30.0 | 1.00 |")
        self.assertEqual(self.row("sign", seeds=(2, 3)),
                         "| sign | 91.50 |  | 91.50 | -0.50 | 30.0 | 0.50 |")
        self.assertEqual(self.row("sign", {**EXPERIMENT, "score": "loss"}).split(" | ")[1:5],
                         ["1.0000", "1.0000", "1.0000", "+0.0000 ± 0.0000"])

    def test_differences_are_of_pairs(self):
        # By hand: differences 1, 2 and 6; mean 3, standard deviation sqrt(7).
        mean, error = table.compare({1: 11, 2: 22, 3: 36, 4: 99}, {1: 10, 2: 20, 3: 30})
        self.assertEqual(mean, 3)
        self.assertAlmostEqual(error, (7 / 3) ** 0.5)
        self.assertEqual(table.compare({1: 11}, {1: 10}), (1, None))
        self.assertIsNone(table.compare({1: 11}, {2: 10}))

    def test_the_file_is_whole_after_every_run(self):
        results = table.Results(self.results)
        results.add("a", {"command": "x"})
        self.assertEqual(json.loads(self.results.read_text()), {"a": {"command": "x"}})
        self.assertIsNone(table.Results(self.results).find("a", "y"))
        self.assertEqual(table.Results(self.results).find("a", "x"), {"command": "x"})

    def test_the_document_has_every_experiment_and_method(self):
        text = table.document({"one": table.EXPERIMENTS, "two": table.HETEROGENEOUS_EXPERIMENTS},
                              [table.METHODS, table.HETEROGENEOUS_METHODS], [1, 2, 3],
                              table.Results(self.results))
        for experiment in [*table.EXPERIMENTS.values(),
                           *table.HETEROGENEOUS_EXPERIMENTS.values()]:
            self.assertIn(f"## {experiment['title']}\n", text)
        for arguments in [*table.METHODS.values(), *table.HETEROGENEOUS_METHODS.values()]:
            self.assertIn(f" {arguments}\n", text)

    def test_quick_keeps_the_partition(self):
        for _, experiment in table.quick(table.HETEROGENEOUS_EXPERIMENTS):
            self.assertIn("--partition by_label", experiment["arguments"])


if __name__ == "__main__":
    unittest.main()
