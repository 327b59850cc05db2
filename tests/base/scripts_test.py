"""What build.sh and run.sh tell cmake, which is replaced by a script that notes it.

    scripts_test.py SOURCE_FOLDER
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(sys.argv.pop(1))
IF_GPU, AUTO = "THINWIRE_CUDA:STRING=IF_GPU\n", "THINWIRE_CUDA:STRING=AUTO\n"


class Scripts(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        for name in ("build.sh", "run.sh"):
            shutil.copy(SOURCE / name, self.folder)
        self.write("setup.sh", "")
        (self.folder / "bin").mkdir()
        self.write("bin/cmake", f'echo "$*" >>"{self.folder}/said"')

    def write(self, name, line):
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def configured(self, cache):
        (self.folder / "build").mkdir()
        (self.folder / "build/build.ninja").touch()
        (self.folder / "build/CMakeCache.txt").write_text(cache)

    def said(self, script, *arguments):
        """What cmake was asked to configure, if anything, and to build."""
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        # run.sh then fails, as there is no command to run.
        subprocess.run([self.folder / script, *arguments],
                       env={**os.environ, "PATH": path, "BUILD": "build"},
                       check=False, capture_output=True, timeout=60)
        lines = (self.folder / "said").read_text().splitlines()
        (self.folder / "said").unlink()
        configure = [line for line in lines if line.startswith("-S")]
        build, = [line for line in lines if line.startswith("--build")]
        return (configure[0].partition(" -G Ninja")[2].split() if configure else None,
                build.partition("--target ")[2])

    def test_a_new_folder(self):
        self.assertEqual(self.said("build.sh"), ([], ""))
        self.assertEqual(self.said("run.sh"), (["-DTHINWIRE_CUDA=IF_GPU"], "thinwire_cli"))
        # The last one holds.
        self.assertEqual(self.said("run.sh", "-DTHINWIRE_CUDA=ON"),
                         (["-DTHINWIRE_CUDA=IF_GPU", "-DTHINWIRE_CUDA=ON"], "thinwire_cli"))

    def test_after_run_sh_device_code_comes_with_everything(self):
        self.configured(IF_GPU)
        self.assertEqual(self.said("run.sh"), (None, "thinwire_cli"))
        self.assertEqual(self.said("build.sh", "build", "thinwire_cli"), (None, "thinwire_cli"))
        self.assertEqual(self.said("build.sh"), (["-DTHINWIRE_CUDA=AUTO"], ""))
        self.assertEqual(self.said("build.sh", "build", "-DTHINWIRE_CUDA=OFF"),
                         (["-DTHINWIRE_CUDA=AUTO", "-DTHINWIRE_CUDA=OFF"], ""))

    def test_a_full_folder_stays_one(self):
        self.configured(AUTO)
        self.assertEqual(self.said("run.sh"), (None, "thinwire_cli"))
        self.assertEqual(self.said("build.sh"), (None, ""))


if __name__ == "__main__":
    unittest.main()
