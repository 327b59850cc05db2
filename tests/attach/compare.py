"""Holds the programs of examples/attach against their single-process originals.

    compare.py equal ORIGINAL PROGRAM...       uncompressed, both print the same numbers for 20 steps
    compare.py trains COMPRESSOR PROGRAM...    compressed, the loss falls as far as FALLS says
    compare.py diffs PAGE FOLDER               the diffs that the page shows are those of the programs
    compare.py show PAGE FOLDER                writes them into it

A PROGRAM may begin with a launcher: mpirun -np 2 build/examples/attach/gan. What the programs print:

    step 3 loss 0.5 samples 11     of this rank's samples; without a number all ranks have as many
    sum weight 1.5                 of a parameter: the same on every rank
    running mean 0.5               of a statistic that each rank has of its own
"""

import collections
import difflib
import pathlib
import re
import subprocess
import sys

STEPS = 20
TOLERANCE = 1e-6
RANKS = 2

# What must fall, in how many steps, how many times at least; and how many times it fell with sign and
# with powersgd:rank=2 when this was written.
FALLS = {
    "gan": ("distance", 600, 2),  # 5.9, 7.6
    "two_heads": ("loss", 200, 3),  # 7.4, 7.1
    "pinn": ("loss", 20, 3),  # 12, 950
    "actor_critic": ("cost", 200, 20),  # 150, 260
    "embeddings": ("loss", 200, 20),  # 140, 140
    "char_rnn": ("loss", 300, 1.5),  # 4.5, 3.0
    "batch_norm": ("loss", 200, 3),  # 10, 8.7
}


class Output:
    """What a program printed, in lists over ranks."""

    def __init__(self, command):
        run = subprocess.run(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=250, check=False
        )
        if run.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with {run.returncode}:\n{run.stderr}")
        self.steps = collections.defaultdict(list)
        self.sums = collections.defaultdict(list)
        self.running = collections.defaultdict(list)
        for line in run.stdout.splitlines():
            kind, name, *rest = line.split()
            if kind == "step":
                values = dict(zip(rest[::2], map(float, rest[1::2])))
                self.steps[int(name)].append(values)
            elif kind == "sum":
                self.sums[name].append(rest[0])
            elif kind == "running":
                self.running[name].append(float(rest[0]))
            else:
                sys.exit(f"an unknown line: {line}")

    def require_whole(self, steps, ranks):
        """Every rank printed everything, and their parameters are the same to the last digit."""
        if sorted(self.steps) != list(range(steps)):
            sys.exit(f"there are {len(self.steps)} steps, not {steps}")
        if not self.sums:
            sys.exit("no parameter's sum was printed")
        for name, values in [*self.steps.items(), *self.sums.items(), *self.running.items()]:
            if len(values) != ranks:
                sys.exit(f"{name} was printed by {len(values)} ranks, not by {ranks}")
        for name, values in self.sums.items():
            if len(set(values)) != 1:
                sys.exit(f"ranks have different parameters: {name} has the sums {values}")

    def curve(self, label):
        """The mean over all samples, by step."""
        means = []
        for _, ranks in sorted(self.steps.items()):
            weights = [rank.get("samples", 1) for rank in ranks]
            weighted = sum(rank[label] * weight for rank, weight in zip(ranks, weights))
            means.append(weighted / sum(weights))
        return means

    def numbers(self):
        """Everything that has to be the same in one process and in several."""
        labels = [label for label in self.steps[0][0] if label != "samples"]
        for label in labels:
            for step, value in enumerate(self.curve(label)):
                yield f"{label} of step {step}", value
        for step, ranks in sorted(self.steps.items()):
            yield f"samples of step {step}", sum(rank.get("samples", 0) for rank in ranks)
        for name, values in self.sums.items():
            yield f"sum of {name}", float(values[0])
        for name, values in self.running.items():
            yield f"running {name}", sum(values) / len(values)


def equal(original, *program):
    alone = Output([original, str(STEPS)])
    alone.require_whole(STEPS, 1)
    parallel = Output([*program, str(STEPS), "none"])
    parallel.require_whole(STEPS, RANKS)
    expected, got = dict(alone.numbers()), dict(parallel.numbers())
    if expected.keys() != got.keys():
        sys.exit(f"different things were printed: {sorted(expected.keys() ^ got.keys())}")
    largest = 0
    for what, value in expected.items():
        difference = abs(got[what] - value)
        if not difference <= TOLERANCE * max(1, abs(value)):
            sys.exit(f"{what} is {got[what]}, alone it is {value}")
        largest = max(largest, difference)
    curve = alone.curve("loss")
    if abs(curve[-1] - curve[0]) < 1000 * TOLERANCE:
        sys.exit("nothing was learnt, so nothing was compared")
    print(f"{len(expected)} numbers, the largest difference is {largest:.1e}")


def trains(compressor, *program):
    label, steps, factor = FALLS[pathlib.Path(program[-1]).name]
    output = Output([*program, str(steps), compressor])
    output.require_whole(steps, RANKS)
    curve = output.curve(label)
    end = curve[-(steps // 4) :]
    first, last = curve[0], sum(end) / len(end)
    print(f"{label} fell from {first:.4g} to {last:.4g}, {first / last:.1f} times in {steps} steps")
    if not last * factor < first:
        sys.exit(f"it has to fall {factor} times")
    dense = Output([*program, str(steps), "none"])
    if compressor != "none" and dense.sums == output.sums:
        sys.exit(f"{compressor} gave what uncompressed gradients give: nothing was compressed")


def diff_of(folder, name):
    """As lines, without line numbers."""
    texts = [
        (pathlib.Path(folder) / file).read_text().splitlines() for file in (f"{name}_alone.cpp", f"{name}.cpp")
    ]
    lines = difflib.unified_diff(*texts, f"{name}_alone.cpp", f"{name}.cpp", n=1, lineterm="")
    return ["@@" if line.startswith("@@") else line.rstrip() for line in lines]


BLOCK = re.compile(r"```diff\n--- (\w+)_alone\.cpp\n(?:[-+ @].*\n|\n)*```\n")


def with_diffs(page, folder):
    """The page's text with the diffs of now, and the names of the programs in it."""
    names = []

    def block(match):
        names.append(match[1])
        return "\n".join(["```diff", *diff_of(folder, match[1]), "```\n"])

    return BLOCK.sub(block, pathlib.Path(page).read_text()), names


def diffs(page, folder):
    text, names = with_diffs(page, folder)
    programs = sorted(path.name.removesuffix("_alone.cpp") for path in pathlib.Path(folder).glob("*_alone.cpp"))
    if sorted(names) != programs or sorted(FALLS) != programs:
        sys.exit(f"{page} shows {sorted(names)}; there are {programs}")
    for name in programs:
        changed = [line for line in diff_of(folder, name)[2:] if line.startswith("+")]
        print(f"{name}: {len(changed)} changed lines")
        if len(changed) > 5:
            sys.exit("more than 5")
    if text != pathlib.Path(page).read_text():
        sys.exit(f"{page} shows diffs of other files; tests/attach/compare.py show {page} {folder} writes them")


def show(page, folder):
    pathlib.Path(page).write_text(with_diffs(page, folder)[0])


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[1] not in ("equal", "trains", "diffs", "show"):
        sys.exit(__doc__)
    {"equal": equal, "trains": trains, "diffs": diffs, "show": show}[sys.argv[1]](*sys.argv[2:])
