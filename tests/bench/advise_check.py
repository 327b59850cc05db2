#!/usr/bin/env python3
"""Is `thinwire advise` right? In the network lab: what it predicts for a step of each compressor
against the steps of `thinwire train`, and its choice against the fastest.

    advise_check.py                                     2 ranks; 100mbit, 300mbit, 1gbit
    advise_check.py --compressors none,sign --rates 1gbit --rounds 5

Advice and trainings take turns, several rounds; predicted and measured are medians over the rounds,
measured of the median interval of a run without its first. Wanted: predictions within 20 %, the
choice within 10 % of the fastest; the exit code is 1 where one is not.

Run it as root on a machine that does nothing else, after a build (build.sh).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
NETLAB = HERE / "netlab"
PREDICTED_WITHIN = 0.20
CHOICE_WITHIN = 0.10
INTERVAL = 4  # steps of a report


def split(compressors):
    """As `thinwire advise --compressors` reads it: a key belongs to the compressor before it."""
    specs = []
    for part in compressors.split(","):
        if specs and "=" in part.split(":")[0]:
            specs[-1] += "," + part
        else:
            specs.append(part)
    return specs


def lab(options, rate, *command):
    # Over sockets nothing but the rank itself runs on a host.
    launcher = "mpirun" if options.backend == "mpi" else "each"
    # One thread for arithmetic each: the hosts of the lab share this machine's cores, and more would
    # wait for each other.
    subprocess.run([NETLAB, "--ranks", str(options.ranks), "--rate", rate, "--launcher", launcher,
                    "--burst", options.burst, "--", options.build / "thinwire",
                    *map(str, command), "--backend", options.backend, "--device", "cpu",
                    *options.training], check=True, text=True, stdout=subprocess.PIPE,
                   stderr=subprocess.PIPE, timeout=1800, env={**os.environ, "OMP_NUM_THREADS": "1"})


def advise(options, rate, folder):
    lab(options, rate, "advise", "--compressors", options.compressors, "--json",
        folder / "advice.json")
    return json.loads((folder / "advice.json").read_text())


def train(options, rate, compressor, predicted, folder):
    steps = min(max(options.seconds / predicted, 4 * INTERVAL), 400)
    lab(options, rate, "train", "--compressor", compressor, "--output", folder / "run",
        "--steps", int(steps) // INTERVAL * INTERVAL, "--report-every", INTERVAL,
        "--check-every", 0)
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["step_seconds"] for line in lines[1:] if "event" not in line)


def check(options, rate):
    """One row per compressor, and the choice."""
    predicted = {spec: [] for spec in options.specs}
    measured = {spec: [] for spec in options.specs}
    choices = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            advice = advise(options, rate, folder)
            choices.append(advice["best"])
            for row in advice["compressors"]:
                predicted[row["compressor"]].append(row["step_seconds"])
            for spec in options.specs:
                measured[spec].append(train(options, rate, spec, predicted[spec][-1], folder))
                print(f"  round {number + 1}, {rate}, {spec}: predicted "
                      f"{1e3 * predicted[spec][-1]:.1f} ms, measured "
                      f"{1e3 * measured[spec][-1]:.1f} ms", file=sys.stderr, flush=True)
    rows = []
    for spec in options.specs:
        guess, truth = statistics.median(predicted[spec]), statistics.median(measured[spec])
        rows.append({"rate": rate, "compressor": spec, "predicted_seconds": guess,
                     "measured_seconds": truth, "error": guess / truth - 1})
    choice = statistics.mode(choices)
    truth = {row["compressor"]: row["measured_seconds"] for row in rows}
    for row in rows:
        row["chosen"] = row["compressor"] == choice
        row["over_fastest"] = row["measured_seconds"] / min(truth.values()) - 1
    return rows


def table(rows):
    lines = [f"{'rate':>8} {'compressor':>22} {'predicted ms':>13} {'measured ms':>12} {'error':>8} "
             f"{'over fastest':>13}"]
    for row in rows:
        lines.append(f"{row['rate']:>8} {row['compressor']:>22} {1e3 * row['predicted_seconds']:>13.1f} "
                     f"{1e3 * row['measured_seconds']:>12.1f} {100 * row['error']:>+7.1f}% "
                     f"{100 * row['over_fastest']:>+12.1f}%{'  chosen' if row['chosen'] else ''}")
    return "\n".join(lines)


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=HERE.parent.parent / "build")
    parser.add_argument("--backend", choices=["mpi", "sockets"], default="mpi")
    parser.add_argument("--compressors", default="none,sign")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rates", default="100mbit,300mbit,1gbit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of one training, about")
    parser.add_argument("--burst", default="256kb", help="of the lab's shapers")
    parser.add_argument("--json", type=pathlib.Path, help="file for the rows")
    parser.add_argument("--training", type=str.split, help="options of the training",
                        default="--model mlp:hidden=2048,2048 --batch-size 64 --lr 0.01 "
                                "--data synthetic:samples=8192,test_samples=64,size=28".split())
    options = parser.parse_args()
    options.specs = split(options.compressors)
    if "none" not in options.specs:  # advise compares with it
        options.specs.insert(0, "none")
    return options


def main():
    options = parse()
    options.build = options.build.resolve()
    rows = []
    try:
        for rate in options.rates.split(","):
            rows += check(options, rate)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd))} ended with {error.returncode}:\n{error.stderr}")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    wrong = [row for row in rows if abs(row["error"]) > PREDICTED_WITHIN or
             (row["chosen"] and row["over_fastest"] > CHOICE_WITHIN)]
    print(f"{len(wrong)} of {len(rows)} are outside of the limits" if wrong else
          "all are within the limits")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
