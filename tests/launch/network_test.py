"""Networks and limits that are not as they should be: `thinwire train` ends in time, with its exit
code and a sentence, and shows no stack trace."""

import pathlib
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "faults"))
from ranks_by_hand import SMALL, Output, free_port, start_rank  # noqa: E402

THINWIRE = pathlib.Path(sys.argv.pop(1)).resolve()
TIMEOUT = 3
LIMIT = 40  # for a busy machine


class Imposter:
    """Listens in somebody's place; `answer` is called with every connection."""

    def __init__(self, answer):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.answer = answer
        self.held = []
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                connection = self.listener.accept()[0]
            except OSError:
                return
            self.held.append(connection)
            try:
                self.answer(connection)
            except OSError:
                pass

    def close(self):
        self.listener.close()


class Network(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def arguments(self, *more):
        return [*SMALL, "--steps", 5, "--timeout", TIMEOUT, "--output", self.folder / "run", *more]

    def rank(self, rank, port, *more, size=2, **variables):
        return start_rank(THINWIRE, rank, size, port, self.arguments(*more), **variables)

    def check_end(self, process, code, sentence):
        output = Output([process])
        self.assertEqual(output.end(LIMIT), [code], output.text())
        self.assertRegex(output.text(), sentence)
        self.assertNotRegex(output.text(), r"frame #|Exception raised|terminate called")
        return output.text()

    def test_who_is_no_rank_zero_is_not_waited_for(self):
        answers = {
            "silent": lambda connection: None,
            "one byte": lambda connection: connection.send(b"x"),
            "closes": lambda connection: connection.close(),
            "talks": lambda connection: connection.sendall(b"\n" * (1 << 20)),
            "random": lambda connection: connection.sendall(bytes(range(256)) * 4),
        }
        ranks = {}
        imposters = []
        for name, answer in answers.items():
            imposters.append(Imposter(answer))
            self.addCleanup(imposters[-1].close)
            ranks[name] = self.rank(1, imposters[-1].port)
        for name, process in ranks.items():
            with self.subTest(name):
                self.check_end(process, 71, r"rank 1 cannot meet rank 0 at 127\.0\.0\.1 port \d+: ")

    def test_a_launchers_store_is_not_waited_for(self):
        ranks = {}
        for name, answer in {"silent": lambda connection: None,
                             "closes": lambda connection: connection.close()}.items():
            imposter = Imposter(answer)
            self.addCleanup(imposter.close)
            ranks[name] = self.rank(1, imposter.port, TORCHELASTIC_RUN_ID="1",
                                    TORCHELASTIC_RESTART_COUNT="0",
                                    TORCHELASTIC_USE_AGENT_STORE="True")
        for name, process in ranks.items():
            with self.subTest(name):
                self.check_end(process, 71, r"the store at 127\.0\.0\.1:\d+ does not answer \(")

    def test_a_place_that_is_nobodys(self):
        # An address of documentation (RFC 5737), and a name that stands for nothing.
        first = self.rank(0, free_port(), MASTER_ADDR="192.0.2.1")
        other = self.rank(1, free_port(), MASTER_ADDR="192.0.2.1")
        nameless = self.rank(1, free_port(), MASTER_ADDR="no-such-host.invalid")
        self.check_end(first, 71, r"rank 1 did not come within 3 s|no route")
        self.check_end(other, 71, r"rank 1 cannot meet rank 0|no route")
        self.check_end(nameless, 71, r"'no-such-host\.invalid' is no address")

    def test_few_open_files(self):
        jobs = {}
        for files in (8, 13, 18, 24):
            port = free_port()
            jobs[files] = Output([self.rank(rank, port, "--output", self.folder / str(files),
                                            files=files) for rank in (0, 1)])
        for files, output in jobs.items():
            with self.subTest(files):
                codes = output.end(LIMIT)
                self.assertTrue(set(codes) <= {0, 65, 71, 73, 74, 127}, f"{codes}\n{output.text()}")
                self.assertNotRegex(output.text(), r"frame #|Exception raised|terminate called")

    def test_a_stop_while_a_rank_is_missing(self):
        ranks = {number: self.rank(0, free_port(), "--timeout", 100)
                 for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)}
        for number, process in ranks.items():
            while "launcher" not in process.stdout.readline():
                pass
            process.send_signal(number)
        for number, process in ranks.items():
            with self.subTest(number):
                self.check_end(process, 75, "rank 0 was asked to stop while rank 1 was missing; "
                                            "there is no checkpoint yet")

    def test_an_output_folder_has_one_name(self):
        # Whether it is there yet or not, and however it is written.
        (self.folder / "here").mkdir()
        (self.folder / "link").symlink_to(self.folder / "here")
        for there in (False, True):
            port = free_port()
            ranks = [self.rank(rank, port, "--output", self.folder / name / "run", "--timeout", 60)
                     for rank, name in enumerate(("here", "link/../link"))]
            output = Output(ranks)
            self.assertEqual(output.end(LIMIT), [78, 78], output.text())  # they have met
            self.assertIn(f"told apart by '{self.folder}/here/run'", output.text())
            (self.folder / "here/run").mkdir(exist_ok=True)

    def test_a_secret_is_told_from_none(self):
        for variables, sentence in (({"THINWIRE_SECRET": "short"}, "has only 5 characters"),
                                    ({"THINWIRE_SECRET": ""}, "is set and empty"),
                                    ({"THINWIRE_SECRET_FILE": "/dev/zero"}, "is no regular file")):
            with self.subTest(sentence):
                self.check_end(self.rank(0, free_port(), **variables), 2, sentence)

    def test_the_wrong_secret_is_turned_away_and_the_job_goes_on(self):
        port = free_port()
        secret = {"THINWIRE_SECRET": "the secret of this job"}
        first = self.rank(0, port, "--timeout", 60, **secret)
        wrong = self.rank(1, port, THINWIRE_SECRET="the secret of another")
        none = self.rank(1, port)
        self.check_end(wrong, 71, "what answers there has another secret; give all ranks the same")
        self.check_end(none, 71, "what answers there has another secret; give all ranks the same")
        output = Output([first, self.rank(1, port, "--timeout", 60, **secret)])
        self.assertEqual(output.end(LIMIT), [0, 0], output.text())
        self.assertIn("strangers kept out by the secret", output.text())


if __name__ == "__main__":
    unittest.main(verbosity=1)
