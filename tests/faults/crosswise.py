"""Pairs of jobs at one port, their ranks started crosswise: each pair ends with both right, or with
one right and the other refused by a sentence; never with a rank in the wrong job.

    crosswise.py THINWIRE [PAIRS] [--seed N]

Every second pair gives its jobs a --job-id, the others are told apart by their output folders.
"""

import argparse
import pathlib
import random
import re
import shutil
import sys
import tempfile
import time

from ranks_by_hand import SMALL, Output, free_port, start_job, start_rank
from support import end_of

STEPS = 30
REFUSALS = (r"another job meets there than this one|cannot listen at port|did not come within|"
            r"ended the meeting|cannot meet rank 0")


def arguments_of(seed, output, job_id):
    return [*SMALL, "--steps", STEPS, "--seed", seed, "--output", output, "--timeout", 8,
            *(["--job-id", job_id] if job_id else [])]


def pair(thinwire, number, draw, folder, hashes):
    """A line that says how it ended; raises AssertionError where ranks were crossed."""
    port = free_port()
    jobs = {name: arguments_of(seed, folder / name, f"job {name}" if number % 2 else "")
            for name, seed in (("a", 1), ("b", 2))}
    order = [("a", 0), ("b", 1), ("b", 0), ("a", 1)]
    if number > 1:
        draw.shuffle(order)
    ranks = {}
    for name, rank in order:
        ranks[name, rank] = start_rank(thinwire, rank, 2, port, jobs[name])
        time.sleep(draw.choice([0, 0, 0.05, 0.3]))
    output = Output(ranks.values())
    codes = dict(zip(ranks, output.end(60)))
    ends = []
    for name in jobs:
        both = [codes[name, rank] for rank in (0, 1)]
        texts = [output.texts[ranks[name, rank]] for rank in (0, 1)]
        if both == [0, 0]:
            end = end_of(folder / name)
            assert end["parameters_hash"] == hashes[name], f"job {name} is not itself"
            checkpoint = pathlib.Path(end["checkpoint"])
            assert checkpoint.parent.parent == folder / name and checkpoint.exists(), end
            ends.append("right")
            continue
        assert 0 not in both, f"half of job {name} ended well: {both}\n" + "\n".join(texts)
        assert "hangs" not in both, f"job {name} hangs: {both}\n" + "\n".join(texts)
        assert all(re.search(REFUSALS, text) for text in texts), "\n".join(texts)
        ends.append("refused")
    assert "right" in ends, output.text()
    return f"a {ends[0]}, b {ends[1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("thinwire", type=pathlib.Path)
    parser.add_argument("pairs", type=int, nargs="?", default=10)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    thinwire = given.thinwire.resolve()
    draw = random.Random(given.seed)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-crosswise-"))
    failed = 0
    try:
        hashes = {}
        for name, seed in (("a", 1), ("b", 2)):
            output = Output(start_job(thinwire, 2, free_port(),
                                      arguments_of(seed, folder / f"alone-{name}", "")))
            assert output.end(60) == [0, 0], output.text()
            hashes[name] = end_of(folder / f"alone-{name}")["parameters_hash"]
        for number in range(given.pairs):
            place = folder / str(number)
            place.mkdir()
            names = "with job ids" if number % 2 else "by their output"
            try:
                print(f"{number + 1:3} {names}: {pair(thinwire, number, draw, place, hashes)}",
                      flush=True)
            except AssertionError as why:
                failed += 1
                print(f"{number + 1:3} {names}: FAILED: {why}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{given.pairs} pairs, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
