#!/usr/bin/env python3
"""The speed of before: a commit of before against the present tree through the network lab, on this
machine.

    speed.py                                 15 rounds of everything: half an hour
    speed.py COMMIT --rounds 5 --only gpt    against another commit, one of the cases
    speed.py --quick                         2 short rounds: does the script work?

In each round every case runs three times, as processes of their own: old, old again and new, in an
order that moves on by one with every round. A ratio is of two times of the same round, so that a
slow minute of the machine does not count. new/old has two of them a round, one with each old;
old/old is what the machine makes of twice the same.

A case is SLOWER if the median of new/old is above 1 by more than 3 % and by more than the spread of
old/old, which is the distance of its farther quartile from 1. The cases:

    sign, int4, topk, powersgd   all-reduce of 2 ranks, 25.6 M floats, 1 Gbit/s
                                 (compare_all_reduce.py)
    mlp, gpt                     whole steps, 1 bit, 4 ranks, 10 M parameters, 1 Gbit/s
                                 (end_to_end.py)
    kernels, power_sgd, update   the programs of tests/bench, without a network: each line that
                                 both builds print is a row

Exit 1 if a case is slower. The commit is built as by bits.py, in the same worktree. Run it as root
on a machine that does nothing else.
"""

import argparse
import fnmatch
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import before

sys.path.append(str(before.HERE.parent / "bench"))
import compare_all_reduce  # noqa: E402
import end_to_end  # noqa: E402

TOLERANCE = 0.03
RATE = "1gbit"


def time_all_reduce(subject):
    def run(build, options, folder):
        """ms of one all-reduce."""
        settings = argparse.Namespace(build=build, backend="mpi", shapes="flat",
                                      bytes=102_400_000, iterations=2 if options.quick else 10,
                                      warmup=1)
        sample = compare_all_reduce.SUBJECTS[subject](settings, 2, RATE, folder)
        return {subject: sample["time_us"] / 1e3}
    return run


def time_step(model):
    def run(build, options, folder):
        """ms of one step."""
        interval = 4 if options.quick else 8
        task = {**end_to_end.TASKS[model], "steps": 5 * interval, "report_every": interval}
        settings = argparse.Namespace(build=build, backend="auto", ranks=4, rate=RATE)
        steady = end_to_end.steady(end_to_end.run_ours("sign", task, settings, folder))
        return {model: 1e3 * settings.ranks * task["batch"] / steady["samples_per_second"]}
    return run


def read_lines(text):
    """What a program of tests/bench prints of the first kind of vectors, by operation."""
    times = {}
    for line in text.splitlines():
        found = re.match(r"(.*?)\s+([\d.]+) (?:ns/element|ms)\b", line)
        if found:
            # The program prints several kinds of vectors, the machine's best first.
            times.setdefault(re.sub(r"\s+", " ", found[1]), float(found[2]))
    return times


def time_program(name, *arguments):
    def run(build, options, _):
        """ns per element, or ms, of each operation."""
        size = [str(argument) for argument in arguments] if not options.quick else ["2"]
        done = subprocess.run([build / "tests" / "bench" / name, *size], check=True, text=True,
                              capture_output=True)
        return {f"{name}: {operation}": time for operation, time in read_lines(done.stdout).items()}
    return run


CASES = {**{subject: time_all_reduce(subject) for subject in ("sign", "int4", "topk", "powersgd")},
         "mlp": time_step("mlp"), "gpt": time_step("gpt"),
         "kernels": time_program("kernels", 6_400_000, 5), "power_sgd": time_program("power_sgd", 4, 5),
         "update": time_program("update", 6_400_000, 5)}


def order(number):
    """Who runs first, second and third in a round; 0 and 1 are the olds."""
    return [(number + place) % 3 for place in range(3)]


def quartiles(values):
    """Of one value it is that value three times."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def summarise(case, rounds):
    """The times [old, old again, new] of each round as a row of the table."""
    to_old = quartiles([new / old for *olds, new in rounds for old in olds])
    old_to_old = quartiles([again / old for old, again, _ in rounds])
    spread = max(old_to_old[2] - 1, 1 - old_to_old[0], 0)
    allowed = 1 + max(TOLERANCE, spread)
    return {"case": case, "rounds": rounds,
            "old_ms": statistics.median(time for *olds, _ in rounds for time in olds),
            "new_ms": statistics.median(new for *_, new in rounds),
            "new_to_old": to_old, "old_to_old": old_to_old, "spread": spread,
            "verdict": "OK" if to_old[1] <= allowed else "SLOWER"}


def table(rows):
    def ratio(three):
        return f"{three[1]:.3f} ({three[0]:.3f} to {three[2]:.3f})"

    width = max(len(row["case"]) for row in rows)
    lines = [f"{'case':<{width}} {'old ms':>8} {'new ms':>8} {'new/old, quartiles':>24} "
             f"{'old/old, quartiles':>24} {'spread':>8}"]
    for row in rows:
        lines.append(f"{row['case']:<{width}} {row['old_ms']:>8.3g} {row['new_ms']:>8.3g} "
                     f"{ratio(row['new_to_old']):>24} {ratio(row['old_to_old']):>24} "
                     f"{100 * row['spread']:>6.1f} %  {row['verdict']}")
    return "\n".join(lines)


def measure(case, builds, options):
    """The rounds of each row of a case: of every operation that all of its runs have."""
    subjects = [("old", builds.old), ("old again", builds.old), ("new", builds.new)]
    rounds = []
    for number in range(options.rounds):
        times = [{}] * len(subjects)
        for index in order(number):
            what, build = subjects[index]
            with tempfile.TemporaryDirectory() as folder:
                times[index] = CASES[case](build, options, pathlib.Path(folder))
            print(f"  round {number + 1}, {case}, {what}: {sum(times[index].values()):.1f}",
                  file=sys.stderr, flush=True)
        rounds.append(times)
    common = [row for row in rounds[0][0] if all(row in times for three in rounds for times in three)]
    return {row: [[times[row] for times in three] for three in rounds] for row in common}


def parse(arguments):
    parser = before.parser(__doc__)
    before.add_arguments(parser)
    parser.add_argument("--rounds", type=int, help="(15, with --quick 2)")
    parser.add_argument("--only", metavar="PATTERN", default="*",
                        help=f"of {', '.join(CASES)}, as a shell matches them")
    parser.add_argument("--quick", action="store_true", help="fewer steps in each measurement")
    parser.add_argument("--json", type=pathlib.Path, help="file for every time of every round")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (2 if options.quick else 15)
    options.cases = [case for case in CASES if fnmatch.fnmatch(case, options.only)]
    if not options.cases:
        parser.error(f"no case is called {options.only}; give one of {', '.join(CASES)}")
    if options.rounds < 1:
        parser.error("--rounds is less than 1")
    return options


def main():
    options = parse(sys.argv[1:])
    builds = before.prepare(options, targets=["thinwire_cli", "bench_kernels", "bench_power_sgd", "bench_update"])
    try:
        rows = [summarise(row, rounds) for case in options.cases
                for row, rounds in measure(case, builds, options).items()]
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd))} ended with {error.returncode}:\n{error.stderr}")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(row["verdict"] == "SLOWER" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
