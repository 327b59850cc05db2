"""The network lab: what it runs, how it shapes, and that nothing of it is left behind.

    netlab_test.py NETLAB      exit code 77: this machine cannot make a lab
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

NETLAB = sys.argv.pop(1) if len(sys.argv) > 1 else os.environ["THINWIRE_NETLAB"]
CANNOT = 77
SLOW = 60  # seconds until something counts as hung

# Rank 1 sends BYTES to rank TO; both end when all has arrived.
TRANSFER = """
import os, socket, sys
to, count = int(sys.argv[1]), int(sys.argv[2])
rank = int(os.environ["RANK"])
if rank == to:
    server = socket.create_server(("", 5000))
    connection, _ = server.accept()
    arrived = 0
    while piece := connection.recv(1 << 20):
        arrived += len(piece)
    sys.exit(0 if arrived == count else 9)
elif rank == 1:
    while True:
        try:
            connection = socket.create_connection((f"host{to}", 5000))
            break
        except ConnectionRefusedError:
            pass
    connection.sendall(bytes(count))
"""

# Rank 1 sends a byte now and then; rank 0 ends when it hears none for a second.
UNTIL_SILENCE = """
import os, socket, time
if os.environ["RANK"] == "0":
    connection, _ = socket.create_server(("", 5000)).accept()
    connection.settimeout(1)
    try:
        while connection.recv(1):
            pass
    except TimeoutError:
        print("silence")
else:
    while True:
        try:
            connection = socket.create_connection(("host0", 5000))
            break
        except OSError:
            time.sleep(.02)
    end = time.monotonic() + 15
    while time.monotonic() < end:
        connection.send(b".")
        time.sleep(.05)
"""


def environment():
    return {k: v for k, v in os.environ.items() if not k.startswith("OMPI_")}


def start(*arguments):
    return subprocess.Popen([NETLAB, *map(str, arguments)], env=environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*arguments):
    process = start(*arguments)
    out, err = process.communicate(timeout=SLOW)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def processes(*command):
    """How many run it."""
    wanted = "".join(word + "\0" for word in command).encode()
    found = 0
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += entry.read_bytes() == wanted
        except OSError:
            pass  # it has just ended
    return found


def wait_until(condition, what):
    end = time.monotonic() + SLOW
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


class Lab(unittest.TestCase):
    def setUp(self):
        self.links = sorted(os.listdir("/sys/class/net"))
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = pathlib.Path(folder.name) / "report.json"

    def tearDown(self):
        self.assertEqual(sorted(os.listdir("/sys/class/net")), self.links)

    def report(self):
        return json.loads(self.file.read_text())

    def test_a_command_runs_on_every_host(self):
        result = run("--ranks", 3, "--rate", "1gbit", "--launcher", "each", "--", "sh", "-c",
                     'echo "$RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $(hostname) '
                     '$MASTER_ADDR"')
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(sorted(result.stdout.splitlines()),
                         [f"{rank}/3 0/1 host{rank} 10.77.1.1" for rank in range(3)])

    @unittest.skipUnless(shutil.which("mpirun"), "no mpirun")
    def test_mpirun_starts_a_rank_on_every_host(self):
        result = run("--groups", "1x2", "--inner-rate", "1gbit", "--rate", "1gbit", "--", "sh",
                     "-c", "echo $OMPI_COMM_WORLD_RANK/$OMPI_COMM_WORLD_SIZE "
                     "$OMPI_COMM_WORLD_LOCAL_RANK/$OMPI_COMM_WORLD_LOCAL_SIZE $(hostname); "
                     "exit $((OMPI_COMM_WORLD_RANK * 5))")
        self.assertEqual(result.returncode, 5, result.stderr)
        self.assertEqual(sorted(result.stdout.splitlines()), ["0/2 0/2 host0", "1/2 1/2 host1"])

    def test_the_link_is_slow_and_counted(self):
        count = 5_000_000
        result = run("--ranks", 2, "--rate", "100mbit", "--launcher", "each", "--report", self.file,
                     "--", sys.executable, "-c", TRANSFER, 0, count)
        self.assertEqual(result.returncode, 0, result.stderr)
        report = self.report()
        sender = report["interfaces"][1]
        self.assertEqual(sender["rank"], 1)
        self.assertGreater(sender["tx_bytes"], count)
        self.assertLess(sender["tx_bytes"], 1.1 * count)
        self.assertGreater(report["interfaces"][0]["rx_bytes"], count)
        # .4 s at this rate, less two bursts of the shapers; no time at all without them.
        self.assertGreater(report["seconds"], 0.3)

    def test_groups_share_an_uplink(self):
        count = 2_000_000
        # Host 0 is in the group of host 1, host 2 in the other.
        for to, crosses in ((0, False), (2, True)):
            result = run("--groups", "2x2", "--inner-rate", "1gbit", "--rate", "100mbit",
                         "--launcher", "each", "--report", self.file, "--", sys.executable, "-c",
                         TRANSFER, to, count)
            self.assertEqual(result.returncode, 0, result.stderr)
            report = self.report()
            uplink = [link for link in report["interfaces"] if link.get("group") == 0][0]
            self.assertEqual(uplink["tx_bytes"] > count, crosses, uplink)
            if crosses:
                self.assertGreater(report["seconds"], 0.1)

    def test_the_first_failure_is_the_exit_code(self):
        result = run("--ranks", 2, "--rate", "1gbit", "--launcher", "each", "--report", self.file,
                     "--", "sh", "-c", "[ $RANK = 1 ] && exit 3; sleep .5; exit 4")
        self.assertEqual(result.returncode, 3, result.stderr)
        self.assertIn("rank 1 ended with 3", result.stderr)
        self.assertIn("rank 0 ended with 4", result.stderr)
        self.assertEqual(self.report()["exit_code"], 3)

    def test_an_unplugged_link_is_silent(self):
        result = run("--ranks", 2, "--rate", "1gbit", "--launcher", "each", "--unplug", "1@5", "--",
                     sys.executable, "-c", UNTIL_SILENCE)
        self.assertIn("unplugged rank 1 after 5.0 s", result.stderr)
        self.assertEqual(result.stdout, "silence\n", result.stderr)

    def test_labs_do_not_meet(self):
        labs = [start("--ranks", 2, "--rate", "1gbit", "--launcher", "each", "--", sys.executable,
                      "-c", TRANSFER, 0, 1000 + lab) for lab in range(2)]
        for lab in labs:
            out, err = lab.communicate(timeout=SLOW)
            self.assertEqual(lab.returncode, 0, out + err)

    def test_a_signal_ends_everything(self):
        for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            word = f"{time.time():.6f}"  # of a sleep that is only ours
            lab = start("--ranks", 2, "--rate", "1gbit", "--launcher", "each", "--", "sh", "-c",
                        "sleep $0 & wait", word)
            wait_until(lambda: processes("sleep", word) == 2, "the ranks do not start")
            # kill -9 hits netlab alone; the kernel has to end the rest.
            lab.send_signal(ending)
            wait_until(lambda: not processes("sleep", word), f"signal {ending} left processes")
            _, err = lab.communicate(timeout=SLOW)
            self.assertEqual(lab.returncode,
                             -9 if ending == signal.SIGKILL else 128 + ending, err)

    def test_a_signal_during_the_start_counts(self):
        for delay in (0.05, 0.1, 0.15):
            lab = start("--ranks", 2, "--rate", "1gbit", "--launcher", "each", "--", "sleep", "600")
            time.sleep(delay)
            lab.terminate()
            lab.communicate(timeout=SLOW)
            self.assertIn(lab.returncode, (143, -signal.SIGTERM))

    def test_refuses_without_rights(self):
        result = subprocess.run(["setpriv", "--bounding-set", "-sys_admin", NETLAB, "--ranks", "2",
                                 "--rate", "1gbit", "--", "true"], text=True, capture_output=True,
                                timeout=SLOW, check=False)
        self.assertEqual(result.returncode, CANNOT)
        self.assertEqual(result.stderr, "netlab: making a namespace failed: Operation not "
                         "permitted; run as root (in a container: --privileged)\n")

    def test_refuses_without_tools(self):
        result = subprocess.run([sys.executable, NETLAB, "--ranks", "2", "--rate", "1gbit", "--",
                                 "true"], env={"PATH": os.path.dirname(NETLAB)}, text=True,
                                capture_output=True, timeout=SLOW, check=False)
        self.assertEqual(result.returncode, CANNOT)
        self.assertEqual(result.stderr,
                         "netlab: there is no ip; install iproute2 and util-linux\n")

    def test_bad_usage(self):
        for arguments, message in (
                (["--rate", "1gbit", "--", "true"], "how many hosts?"),
                (["--ranks", 2, "--rate", "fast", "--", "true"], "--rate is 'fast'"),
                (["--ranks", 2, "--rate", "1gbit"], "no command"),
                (["--groups", "2x2", "--rate", "1gbit", "--", "true"], "belong together"),
                (["--ranks", 2, "--rate", "1gbit", "--unplug", "2@1", "--", "true"], "RANK@SEC")):
            result = run(*arguments)
            self.assertEqual(result.returncode, 2)
            self.assertIn(message, result.stderr)


def main():
    probe = run("--ranks", 1, "--rate", "1gbit", "--launcher", "each", "--", "true")
    if probe.returncode == CANNOT:
        print(f"skipped: {probe.stderr}")
        sys.exit(CANNOT)
    unittest.main()


if __name__ == "__main__":
    main()
