"""Strangers on the network against a job of 3 ranks over sockets, with a secret, and one under
mpirun: while the ranks meet and while they train. Both must end with the parameters of an undisturbed
run, and no rank may take 50 MB more than there.

    strangers.py THINWIRE [--seconds N] [--seed N]

Half of the seconds belong to each job, and of those half to the meeting; of mpirun's job at most
five, as its ranks join the lifeline within ten. What trains does not listen, which is looked at. From a process of its own
come idle and slow connections, random bytes, floods of newlines, 2,000 connections at a limit of 1024
open files, hellos of this job without its secret, and whole ranks with another secret.
"""

import argparse
import collections
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from ranks_by_hand import SMALL, Output, free_port, listening, peak_memory, start_rank
from support import end_of, mpi_environment, mpirun

RANKS = 3
FILES = 1024
MOST_GROWTH = 50  # MB
SECRET = "the secret of this test's job"


class Attack:
    """What one thread of the stranger does to a port again and again."""

    def __init__(self, kind, hello, draw):
        self.kind = kind
        self.hello = hello
        self.draw = draw
        self.held = []  # connections, the latest of them

    def hold(self, connection, most):
        self.held.append(connection)
        while len(self.held) > most:
            self.held.pop(0).close()

    def strike(self, connection):
        connection.settimeout(0.2)
        if self.kind == "idle":
            self.hold(connection, 100)
        elif self.kind == "many":
            self.hold(connection, 2000)
        elif self.kind == "slow":
            self.hold(connection, 50)
            for one in list(self.held):
                try:
                    one.send(self.hello[:1] or b"x")
                except OSError:
                    self.held.remove(one)
            time.sleep(0.05)
        elif self.kind == "bytes":
            connection.sendall(self.draw.randbytes(self.draw.choice([1, 71, 72, 73, 4096, 1 << 20])))
            connection.close()
        elif self.kind == "newlines":
            for _ in range(64):
                connection.sendall(b"\n" * (1 << 16))
            connection.close()
        elif self.kind == "hello":
            # A guest's first word, heard elsewhere; then a guess at the proof.
            connection.sendall(self.hello)
            connection.recv(48)
            connection.sendall(self.draw.randbytes(32))
            connection.recv(40)
            connection.close()


def stranger(ports, struck, hello, seed, over):
    """A process: attacks every port in `ports` until it is over; counts in `struck`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    kinds = ["idle", "many", "slow", "bytes", "newlines", "hello"]

    def work(number):
        attack = Attack(kinds[number], hello, random.Random(seed + number))
        while not over.is_set():
            for port in [port for port in ports if port]:
                try:
                    connection = socket.create_connection(("127.0.0.1", port), timeout=2)
                    struck[number] += 1
                    attack.strike(connection)
                except OSError:
                    pass  # turned away, or nobody listens
            time.sleep(0 if attack.kind == "many" else 0.01)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(kinds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Strangers:
    def __init__(self, hello, seed):
        self.ports = multiprocessing.Array("i", 16)
        self.struck = multiprocessing.Array("i", 6)
        self.over = multiprocessing.Event()
        self.process = multiprocessing.Process(
            target=stranger, args=(self.ports, self.struck, hello, seed, self.over))
        self.process.start()
        self.seen = set()

    def aim_at(self, ports):
        self.seen |= set(ports)
        for place, port in enumerate(sorted(self.seen)[-16:]):
            self.ports[place] = port

    def end(self):
        self.over.set()
        self.process.join(30)
        return dict(zip(("idle", "many", "slow", "bytes", "newlines", "hello"), self.struck))


def hear_hello(thinwire, job_id):
    """What a rank of the job says first, heard by who listens in rank 0's place."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        rank = start_rank(thinwire, 1, RANKS, port, [*SMALL, "--steps", 1, "--job-id", job_id,
                                                     "--timeout", 5],
                          THINWIRE_SECRET="another secret, of a stranger")
        listener.settimeout(60)
        connection = listener.accept()[0]
        hello = connection.recv(72, socket.MSG_WAITALL)
        connection.close()
    rank.kill()
    rank.communicate()
    return hello


class Watch:
    """Looks at a job's processes: where they listen, what memory they take."""

    def __init__(self, strangers=None, address=None):
        self.strangers = strangers
        self.address = address
        self.peaks = collections.Counter()

    def look(self, pids):
        for rank, pid in enumerate(pids):
            self.peaks[rank] = max(self.peaks[rank], peak_memory(pid))
            if self.strangers:
                self.strangers.aim_at(listening(pid, self.address))

    def until(self, pids, condition, limit):
        end = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < end, "it takes too long"
            self.look(pids)
            time.sleep(0.02)


def sockets_job(thinwire, folder, steps, seconds, attacked, seed):
    """The end report and each rank's peak memory."""
    port = free_port()
    job_id = "a job that is attacked"
    arguments = [*SMALL, "--steps", steps, "--output", folder, "--job-id", job_id, "--timeout", 120]
    keywords = {"files": FILES, "THINWIRE_SECRET": SECRET}
    strangers = Strangers(hear_hello(thinwire, job_id), seed) if attacked else None
    watch = Watch(strangers)
    if strangers:
        strangers.aim_at([port])
    ranks = [start_rank(thinwire, rank, RANKS, port, arguments, **keywords) for rank in (0, 1)]
    outputs = [Output(ranks)]
    imposters = []
    if attacked:
        # Rank 2 comes late. Meanwhile ranks with another secret say that they are it, or others.
        end = time.monotonic() + seconds

        def refused():
            return [one for one in imposters if one.poll() is not None]

        # On a busy machine the first of them may take longer to be heard than the attack shall last.
        while time.monotonic() < end or not refused():
            assert time.monotonic() < end + 120, "no imposter gets an answer"
            watch.look([rank.pid for rank in ranks])
            if len(imposters) < 3 and len(refused()) == len(imposters):
                imposters.append(start_rank(thinwire, 2 - len(imposters) % 2, RANKS, port, arguments,
                                            THINWIRE_SECRET="another secret, of a stranger"))
            time.sleep(0.02)
        answered = refused()
    ranks.append(start_rank(thinwire, 2, RANKS, port, arguments, **keywords))
    outputs.append(Output(ranks[2:]))
    pids = [rank.pid for rank in ranks]
    try:
        watch.until(pids, lambda: any("step" in text for text in outputs[0].texts.values()) or
                    ranks[0].poll() is not None, 120)
        if ranks[0].poll() is None:
            time.sleep(0.5)
            ports = set().union(*(listening(pid) for pid in pids))
            assert not ports, f"ranks that have met listen at {ports}"
        watch.until(pids, lambda: all(rank.poll() is not None for rank in ranks), 600)
    finally:
        codes = [code for output in outputs for code in output.end(60)]
        struck = strangers.end() if strangers else {}
        for one in imposters:
            one.kill()
    said = "\n".join(output.text() for output in outputs)
    assert codes == [0, 0, 0], f"exit codes {codes}\n{said}"
    assert "strangers kept out by the secret" in said, said
    for one in imposters:
        text = one.communicate()[0]
        # One that was still calling when the ranks had met finds nobody any more.
        assert one not in answered or (one.returncode != 0 and "another secret" in text), text
    return end_of(folder), watch.peaks, struck


def mpirun_job(thinwire, folder, steps, seconds, attacked, seed):
    """Its lifeline listens only until all ranks have joined it, some milliseconds: rank 2 is slowed
    down until rank 0 listens, and then stopped for a while."""
    arguments = [*SMALL, "--steps", str(steps), "--output", str(folder), "--timeout", "120"]
    strangers = Strangers(b"", seed) if attacked else None
    # MPI's own listeners are not ours; of a job on one machine ours is at 127.0.0.1.
    watch = Watch(strangers, "127.0.0.1")
    process = subprocess.Popen([mpirun(), "-np", str(RANKS), thinwire, "train", *arguments],
                               env=mpi_environment(), text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    output = Output([process])

    def pids():
        children = subprocess.run(["pgrep", "-P", str(process.pid)], text=True,
                                  capture_output=True, check=False).stdout.split()
        return [int(pid) for pid in children]

    def hold_back_rank_2():
        """Until rank 0 listens, and then for as long as the others wait."""
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            ranks = pids()
            if len(ranks) < RANKS:
                continue
            os.kill(ranks[2], signal.SIGSTOP)
            time.sleep(0.02)
            ports = listening(ranks[0], watch.address)
            if ports:
                strangers.aim_at(ports)
                limit = time.monotonic() + min(seconds, 5)
                while time.monotonic() < limit:
                    watch.look(ranks)
                    time.sleep(0.02)
            os.kill(ranks[2], signal.SIGCONT)
            if ports:
                return True
            time.sleep(0.002)
            # Of who trains already the moment was missed.
            if "step" in output.text():
                return False
        return False

    try:
        missed = attacked and not hold_back_rank_2()
        if missed:
            process.terminate()
        end = time.monotonic() + 600
        while process.poll() is None:
            assert time.monotonic() < end, "it takes too long"
            watch.look(pids())
            time.sleep(0.02)
    finally:
        codes = output.end(60)
        struck = strangers.end() if strangers else {}
    if missed:
        return None
    assert codes == [0], f"exit code {codes}\n{output.text()}"
    assert "strangers kept out of what is not MPI's" in output.text(), output.text()
    assert "no lifeline" not in output.text(), output.text()
    return end_of(folder), watch.peaks, struck


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("thinwire", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    thinwire = given.thinwire.resolve()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-strangers-"))
    jobs = [("sockets", sockets_job)] + ([("mpirun", mpirun_job)] if mpirun() else [])
    try:
        for name, job in jobs:
            # As many steps as take about their share undisturbed.
            share = given.seconds / len(jobs) / 2
            steps = 200
            for attempt in range(3):
                began = time.monotonic()
                end, calm, _ = job(thinwire, folder / f"{name}-{attempt}", steps, 0, False, 0)
                if time.monotonic() - began > share or attempt == 2:
                    break
                steps = int(steps * min(max(share / max(end["seconds"], 0.01), 1), 1000))
            for attempt in range(20):
                # On a busy machine the moment in which a lifeline listens may be missed.
                result = job(thinwire, folder / f"{name}-attacked-{attempt}", steps, share, True,
                             given.seed)
                if result:
                    break
            attacked, peaks, struck = result
            assert struck["many"] > 100, "nothing was attacked"
            growth = max(peaks[rank] - calm[rank] for rank in peaks)
            print(f"{name}: {steps} steps, {sum(struck.values())} connections {struck}, "
                  f"memory of a rank {growth:+.1f} MB, parameters {attacked['parameters_hash']}",
                  flush=True)
            assert attacked["parameters_hash"] == end["parameters_hash"], "other parameters"
            assert growth < MOST_GROWTH, "a rank takes too much memory"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
