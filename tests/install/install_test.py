"""Projects of somebody else's use the installed package, or the sources.

    install_test.py --build BUILD --torch TORCH --generator NAME --compiler CXX --built PARTS CASE...

The case Package installs; the others need that.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "launch"))
from support import environment, mpi_environment, mpirun  # noqa: E402

ARGUMENTS = argparse.Namespace()
NO_MPI_NOR_CUDA = ["-DCMAKE_DISABLE_FIND_PACKAGE_MPI=ON",
                   "-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON"]


def built(part):
    return part in ARGUMENTS.built.split(",")


def run(command, **options):
    """The exit code, and what was printed, in one line for sentences that CMake has wrapped."""
    result = subprocess.run(list(map(str, command)), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, check=False, timeout=280,
                            **{"env": environment(), **options})
    return result.returncode, result.stdout


def one_line(text):
    return re.sub(r"\s+", " ", text)


def under_mpirun(ranks, *command):
    return run([mpirun(), "-np", ranks, *command], env=mpi_environment())


class Case(unittest.TestCase):
    @property
    def work(self):
        return pathlib.Path(ARGUMENTS.build) / "install-test"

    @property
    def prefix(self):
        return self.work / "a moved prefix"

    def setUp(self):
        self.folder = self.work / type(self).__name__
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def configure(self, source, name, *options):
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        return (folder, *run(["cmake", "-S", source, "-B", folder, "-G", ARGUMENTS.generator,
                              f"-DCMAKE_CXX_COMPILER={ARGUMENTS.compiler}", *options]))

    def configure_consumer(self, name, *options):
        launcher = [f"-DCMAKE_CXX_COMPILER_LAUNCHER={ccache}"] if (
            ccache := shutil.which("ccache")) else []
        return self.configure(HERE / "consumer", name, f"-DCMAKE_PREFIX_PATH={self.prefix}",
                              *launcher, *options)

    def build(self, folder):
        self.ok(run(["cmake", "--build", folder, "--parallel", "2"]))

    def consumer(self, *options, name="build"):
        """Configured and built: its folder, and what configure said it is offered."""
        folder, code, text = self.configure_consumer(name, *options)
        self.assertEqual(code, 0, text)
        self.build(folder)
        return folder, re.findall(r"offers (\w+)", text)

    def ok(self, result):
        code, text = result
        self.assertEqual(code, 0, text)
        return text

    def says(self, result, *sentences, code=0):
        self.assertEqual(result[0], code, result[1])
        for sentence in sentences:
            self.assertIn(sentence, result[1])

    def refused(self, result, sentence):
        *_, code, text = result
        self.assertNotEqual(code, 0, text)
        self.assertIn(sentence, one_line(text))


class Package(Case):
    def test_it_can_be_moved(self):
        shutil.rmtree(self.prefix, ignore_errors=True)
        first = self.folder / "prefix"
        self.ok(run(["cmake", "--install", ARGUMENTS.build, "--prefix", first]))
        for file in [*first.rglob("*.cmake"), *first.rglob("*.pc"), *first.rglob("*.h")]:
            text = file.read_text()
            self.assertNotIn(str(first), text, file)
            self.assertNotIn(f"{SOURCE}/", text.replace(ARGUMENTS.torch, ""), file)
        first.rename(self.prefix)
        self.says(run([self.prefix / "bin/thinwire", "info"]), "thinwire  ")


class FindPackage(Case):
    def test_without_components_everything_is_offered(self):
        folder, offered = self.consumer("-DPROGRAMS=attach;everything")
        for part in ("mpi", "cuda", "nccl"):
            self.assertEqual(part in offered, built(part), part)
        self.says(run([folder / "attach"]), "mean gradient 1.50")
        self.says(run([folder / "everything", "--ranks", "3"]), "mean gradient 2.00 of 3 ranks")
        if built("mpi"):
            self.says(under_mpirun(2, folder / "everything"), "compiled with MPI",
                      "ranks over mpi", "mean gradient 1.50 of 2 ranks")

    def test_only_what_was_asked_for_is_looked_up(self):
        folder, code, text = self.configure_consumer("runtime", "-DCOMPONENTS=runtime;sockets")
        self.assertEqual(code, 0, text)
        cache = (folder / "CMakeCache.txt").read_text()
        self.assertNotRegex(cache, "(?m)^(MPI_|CUDAToolkit_|THINWIRE_NCCL)")
        self.assertNotIn("offers mpi", text)


class Launch(Case):
    def test_the_launchers(self):
        parts = "launch;mpi" if built("mpi") else "launch"
        folder, _ = self.consumer("-DPROGRAMS=launched", f"-DCOMPONENTS={parts}")
        program = folder / "launched"
        with self.subTest("alone"):
            self.says(run([program, "sum", "--ranks", "3"]), "a sum of 3 ranks",
                      "thinwire: launcher alone (no launcher's variables are set); ranks over "
                      "threads")
            self.says(run([program, "fail", "--ranks=2"]),
                      "thinwire: the data are damaged; fetch them again", code=65)
        if built("mpi"):
            with self.subTest("mpirun"):
                self.says(under_mpirun(2, program), "a sum of 2 ranks", "ranks over mpi")
                self.says(under_mpirun(2, program, "fail"),
                          "thinwire: rank 1: the data are damaged; fetch them again", code=65)
                self.says(under_mpirun(2, program, "sum", "--ranks", "2"),
                          "--ranks is 2 in each of 2 processes of mpirun", code=2)
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        if run([*torchrun, "--help"])[0] != 0:
            return  # this Python cannot run it
        torchrun += ["--standalone", "--nproc-per-node", "2", "--no-python", program]
        with self.subTest("torchrun"):
            self.says(run([*torchrun]), "a sum of 2 ranks", "ranks over sockets, met at")
            self.says(run([*torchrun, "fail"]), "thinwire: rank 1: the data are damaged", code=1)
        with self.subTest("torchrun, and a communicator that the program makes"):
            self.says(run([*torchrun, "sockets"]), "a sum of 2 ranks")


class OwnMpi(Case):
    def test_what_the_program_started_stays_its_own(self):
        if not built("mpi"):
            self.skipTest("thinwire was built without MPI")
        folder, _ = self.consumer("-DPROGRAMS=own_mpi", "-DCOMPONENTS=mpi")
        program = folder / "own_mpi"
        own_end = "ended by its own MPI_Finalize"
        for how in ("threads", "environment"):
            text = self.ok(under_mpirun(2, program, how))
            self.assertEqual(text.count("a sum of 2 ranks"), 2, text)
            self.assertEqual(text.count(own_end), 2, text)
        for how in ("plain", "plain-environment"):
            self.says(under_mpirun(1, program, how),
                      "MPI was started without MPI_THREAD_MULTIPLE, but gradients are sent from a "
                      "thread of their own; replace MPI_Init by "
                      "MPI_Init_thread(MPI_THREAD_MULTIPLE), or leave it to "
                      "thinwire::MpiEnvironment", own_end, code=2)
        self.says(run([program, "finalized"], env=mpi_environment()),
                  "MPI was finalized in this process and cannot start again", code=2)
        self.says(run([program, "nothing"], env=mpi_environment()),
                  "MPI is not started; make a thinwire::MpiEnvironment first", code=2)
        # Enough is enough, however it came about.
        self.says(run([program, "plain"],
                      env={**mpi_environment(), "OMPI_MPI_THREAD_LEVEL": "3"}),
                  "a sum of 1 ranks", own_end)


class WithoutMpiAndCuda(Case):
    def test_a_package_that_has_them_works(self):
        folder, offered = self.consumer("-DPROGRAMS=everything", *NO_MPI_NOR_CUDA)
        self.assertEqual(set(offered) & {"mpi", "cuda", "nccl"}, set())
        program = folder / "everything"
        self.says(run([program, "--ranks", "2"]), "mean gradient 1.50 of 2 ranks")
        self.assertNotIn("compiled with MPI", run([program])[1])
        self.says(run([program], env=environment(OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="2",
                                                 OMPI_COMM_WORLD_LOCAL_RANK="0")),
                  "this program was built without mpi, which mpirun needs here; ", code=2)
        text = run(["ldd", program])[1]
        self.assertNotIn("libmpi", text)
        self.assertNotIn("libnccl", text)

    def test_a_component_that_needs_them_is_refused(self):
        self.refused(self.configure_consumer("mpi", "-DCOMPONENTS=mpi", *NO_MPI_NOR_CUDA),
                     "thinwire's component 'mpi' cannot be used: " +
                     ("no MPI is found; install one (Debian: libopenmpi-dev)" if built("mpi") else
                      "this thinwire was built without it; build it again with -DTHINWIRE_MPI=ON")
                     + ", or leave the component out.")


class Refusals(Case):
    def other_torch(self):
        torch = self.folder / "torch"
        (torch / "lib").mkdir(parents=True)
        (torch / "lib/libtorch_cpu.so").touch()
        (torch / "version.py").write_text("__version__ = '2.10.0+cpu'\n")
        return torch

    def test_an_unknown_component(self):
        self.refused(self.configure_consumer("nonsense", "-DCOMPONENTS=runtime;nonsense"),
                     "thinwire has no component 'nonsense'; its components are base, collectives, "
                     "threads, net, sockets, optimizers, runtime, attach, launch, thinwire, mpi, cuda, nccl.")

    def test_another_libtorch(self):
        torch = self.other_torch()
        sentence = (f"libtorch in '{torch}' is 2.10.0, but thinwire needs 2.11; pass "
                    "-DTHINWIRE_TORCH=<site-packages>/torch of a torch 2.11 wheel")
        self.refused(self.configure_consumer("consumer", f"-DTHINWIRE_TORCH={torch}"), sentence)
        self.refused(self.configure(SOURCE, "source", f"-DTHINWIRE_TORCH={torch}"), sentence)
        # Headers come first: programs are compiled with them.
        header = torch / "include/torch/headeronly/version.h"
        header.parent.mkdir(parents=True)
        header.write_text("#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 12\n"
                          "#define TORCH_VERSION_PATCH 1\n")
        self.refused(self.configure_consumer("consumer", f"-DTHINWIRE_TORCH={torch}"),
                     sentence.replace("2.10.0", "2.12.1"))

    def test_no_libtorch(self):
        self.refused(self.configure_consumer("consumer", "-DTHINWIRE_TORCH=/nowhere"),
                     "libtorch not found in '/nowhere'; pass -DTHINWIRE_TORCH=")


class PkgConfig(Case):
    def make(self, package):
        makefile = HERE / "consumer/Makefile"
        self.ok(run(["make", "-f", makefile, f"SOURCES={HERE / 'consumer'}", f"PACKAGE={package}",
                     f"CXX={ARGUMENTS.compiler}"], cwd=self.folder,
                    env=environment(PKG_CONFIG_PATH=str(self.pkgconfig()))))
        return self.folder / f"everything-{package}"

    def pkgconfig(self):
        return next(self.prefix.rglob("thinwire.pc")).parent

    def test_a_plain_makefile(self):
        program = self.make("thinwire")
        self.says(run([program, "--ranks", "2"]), "mean gradient 1.50 of 2 ranks")
        if built("mpi"):
            program = self.make("thinwire-mpi")  # the same object
            self.says(under_mpirun(2, program), "ranks over mpi", "mean gradient 1.50 of 2 ranks")
            flags = self.ok(run(["pkg-config", "--cflags", "thinwire-mpi"],
                                env=environment(PKG_CONFIG_PATH=str(self.pkgconfig()))))
            self.assertIn("-DTHINWIRE_WITH_MPI", flags)


class Subproject(Case):
    options = [f"-DTHINWIRE_SOURCE={SOURCE}", "-DTHINWIRE_CUDA=OFF",
               "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]

    def test_add_subdirectory(self):
        folder, code, text = self.configure(HERE / "subproject", "build", *self.options,
                                            f"-DTHINWIRE_TORCH={ARGUMENTS.torch}")
        self.assertEqual(code, 0, text)
        self.build(folder)  # only what the parent links
        self.says(run([folder / "parent"]), "parsed 42")
        libraries = [path.name for path in folder.rglob("*.a")]
        self.assertEqual(libraries, ["libthinwire_base.a"])
        commands = (folder / "compile_commands.json").read_text()
        self.assertRegex(commands, r"-O3[^\n]*collectives/base/choice_reader\.cpp")
        self.assertNotRegex(commands, r"-O[^\n]*parent\.cpp")
        self.assertIn("No tests were found", run(["ctest", "--test-dir", folder])[1])

    def test_fetch_content(self):
        _, code, text = self.configure(HERE / "subproject", "fetched", *self.options, "-DFETCH=ON",
                                       f"-DTHINWIRE_TORCH={ARGUMENTS.torch}")
        self.assertEqual(code, 0, text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option in ("build", "torch", "generator", "compiler", "built"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("cases", nargs="+")
    ARGUMENTS = parser.parse_args()
    unittest.main(argv=[sys.argv[0], *ARGUMENTS.cases], verbosity=1)
