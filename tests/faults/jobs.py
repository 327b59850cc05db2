"""Two ranks of `thinwire train`, as threads of one process or as processes over sockets, that a test
kills and signals."""

import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "launch"))
from support import environment  # noqa: E402

FORMS = ("threads", "sockets")
RANKS = 2


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Job:
    """`stdout` replaces that of rank 0."""

    def __init__(self, program, form, *arguments, stdout=None):
        command = [program, "train", *map(str, arguments)]
        places = [{}]
        if form == "threads":
            command += ["--ranks", str(RANKS)]
        else:
            common = {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS),
                      "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
            places = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                      for rank in range(RANKS)]
        self.files = []
        self.processes = []
        for place in places:
            out, err = (tempfile.TemporaryFile("w+") for _ in range(2))
            self.files.append((out, err))
            given = stdout if stdout is not None and not self.processes else out
            self.processes.append(subprocess.Popen(command, env=environment(**place), stdout=given,
                                                   stderr=err, text=True))

    def text(self, rank=None):
        """What all ranks, or one, have printed so far."""
        text = ""
        for files in self.files if rank is None else [self.files[rank]]:
            for file in files:
                file.seek(0)
                text += file.read()
        return text

    def lives(self):
        return all(process.poll() is None for process in self.processes)

    def wait_for(self, what, ready, limit=60):
        """Until it is so; looks as often as it can, since what follows is short."""
        deadline = time.monotonic() + limit
        while not ready():
            assert self.lives(), f"ended before {what}\n{self.text()}"
            assert time.monotonic() < deadline, f"no {what} in {limit} s\n{self.text()}"
            time.sleep(0.0005)

    def codes(self, limit=60):
        """Exit codes of all ranks; those that do not end are killed."""
        deadline = time.monotonic() + limit
        try:
            return [process.wait(max(0.1, deadline - time.monotonic()))
                    for process in self.processes]
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end within {limit} s\n{self.text()}") from None

    def kill(self, rank=None):
        """kill -9 to one rank, or to all."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            process.send_signal(signal.SIGKILL)

    def close(self):
        for files in self.files:
            for file in files:
                file.close()


def blocks(process, number):
    """Whether the process has come so far that it takes the signal itself."""
    try:
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    mask = next((line for line in status.splitlines() if line.startswith("SigBlk:")), "SigBlk: 0")
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


def steps_of(root):
    """Steps of the checkpoint folders, and of those among them that have a manifest."""
    folders = [p for p in root.glob("step-*") if p.is_dir()]
    number = {p: int(p.name[5:]) for p in folders}
    return (sorted(number.values()),
            sorted(number[p] for p in folders if (p / "manifest.json").exists()))
