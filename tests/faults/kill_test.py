"""kill -9 at random moments while a run checkpoints every step: every restart finds a whole
checkpoint and goes on, and the end has the bits of a run that was never killed.

    kill_test.py THINWIRE [KILLS]
"""

import pathlib
import random
import re
import shutil
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "launch"))
from support import Program, end_of  # noqa: E402

PROGRAM = Program(sys.argv[1])
KILLS = int(sys.argv[2]) if len(sys.argv) > 2 else 30
JOB = ["train", "--ranks", "2", "--model", "mlp:hidden=64", "--data",
       "synthetic:samples=256,test_samples=32,size=8", "--batch-size", "8", "--lr", "0.05",
       "--momentum", "0.5", "--compressor", "sign", "--checkpoint-every", "1"]


def steps_of(root):
    """Steps of the checkpoint folders, and of those among them that have a manifest."""
    folders = [p for p in root.glob("step-*") if p.is_dir()]
    number = {p: int(p.name[5:]) for p in folders}
    return (sorted(number.values()),
            sorted(number[p] for p in folders if (p / "manifest.json").exists()))


def main():
    draw = random.Random(7)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-kill-"))
    root = folder / "run/checkpoints"
    partial = resumed = 0
    last_whole = 0
    for kill in range(KILLS):
        process = PROGRAM.start(*JOB, "--steps", "100000", "--output", folder / "run", "--resume",
                                "auto")
        goal = last_whole + draw.randint(1, 3)
        deadline = time.monotonic() + 60
        while not (steps_of(root)[1] or [0])[-1] >= goal:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        out, err = process.communicate(timeout=60)
        if last_whole:
            found = re.search(r"resumed from .* at step (\d+)", out)
            assert found, f"kill {kill}: no resume\n{out}{err}"
            assert int(found.group(1)) >= last_whole, out
            resumed += 1
        every, whole = steps_of(root)
        partial += every[-1] != whole[-1]
        last_whole = whole[-1]
        checked = PROGRAM.run("verify", root / f"step-{last_whole:08d}")
        assert checked.returncode == 0, checked.stderr

    steps = str(last_whole + 5)
    result = PROGRAM.run(*JOB, "--steps", steps, "--output", folder / "run", "--resume", "auto")
    assert result.returncode == 0, result.stderr
    result = PROGRAM.run(*JOB[:-2], "--steps", steps, "--output", folder / "whole")
    assert result.returncode == 0, result.stderr
    killed, whole = (end_of(folder / name)["parameters_hash"] for name in ("run", "whole"))
    print(f"{KILLS} kills, {resumed} resumed, {partial} left a partial checkpoint behind, "
          f"{steps} steps, parameters {killed} and {whole}")
    assert killed == whole
    # How many is luck; how a checkpoint that is cut at every byte is read, others test.
    assert partial > 0, "no kill hit a checkpoint being written"
    shutil.rmtree(folder)


main()
