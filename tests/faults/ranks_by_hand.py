"""Jobs over sockets whose ranks are started by hand, one process each, for tests that disturb them."""

import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "launch"))
from support import environment  # noqa: E402

SMALL = ["--model", "mlp:hidden=24", "--data", "synthetic:samples=256,test_samples=64,size=8",
         "--batch-size", "8", "--lr", "0.05", "--momentum", "0", "--compressor", "sign",
         "--report-every", "50"]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def last_of_each(arguments):
    """Of flags that are given twice the last, as `thinwire` takes each once."""
    words = list(arguments)
    pairs = dict(zip(words[::2], words[1::2]))
    return [word for pair in pairs.items() for word in pair]


def start_rank(thinwire, rank, size, port, arguments, files=None, **variables):
    """One rank as a process; `files`: its limit on open files."""
    def limit():
        for number in (signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        if files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    return subprocess.Popen(
        [str(thinwire), "train", *last_of_each(map(str, arguments))], text=True, preexec_fn=limit,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment(**{"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
                           "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                           "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", **variables}))


def start_job(thinwire, size, port, arguments, **keywords):
    return [start_rank(thinwire, rank, size, port, arguments, **keywords) for rank in range(size)]


class Output:
    """Reads what processes say, so that none of them waits for a full pipe."""

    def __init__(self, processes):
        self.texts = {process: "" for process in processes}
        self.threads = [threading.Thread(target=self.read, args=(process,), daemon=True)
                        for process in processes]
        for thread in self.threads:
            thread.start()

    def read(self, process):
        for line in process.stdout:
            self.texts[process] += line

    def end(self, limit):
        """The exit codes, in order. Kills what takes longer."""
        codes = []
        for process in self.texts:
            try:
                codes.append(process.wait(timeout=limit))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append("hangs")
        for thread in self.threads:
            thread.join(10)
        for process in self.texts:
            process.stdout.close()
        return codes

    def text(self):
        return "\n".join(self.texts.values())


def listening(pid, address=None):
    """The TCP ports at which a process listens; with `address` only those of it ("127.0.0.1")."""
    sockets = set()
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            target = os.readlink(entry.path)
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    except OSError:
        return set()
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            host, port = fields[1].split(":")
            if fields[3] != "0A" or fields[9] not in sockets:
                continue
            if address and bytes.fromhex(host)[::-1] != socket.inet_aton(address):
                continue
            ports.add(int(port, 16))
    return ports


def peak_memory(pid):
    """In MB; 0 once the process is gone."""
    try:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0
