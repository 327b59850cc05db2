"""What the comparisons with a commit of before share: its worktree and build, and the build of the
present tree."""

import argparse
import collections
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGETS = ["thinwire_cli", "redesign_attached"]

# The last commit without a Layout, whose codings were spread over many files.
COMMIT = "2254048ccbe2440831013d41fccac876a21eac67"

# What the build of before takes from the present one. CUDA and NCCL stay away: they compile for
# minutes, and everything here runs on the host.
SAME = ["CMAKE_BUILD_TYPE", "CMAKE_CXX_COMPILER", "CMAKE_CXX_FLAGS", "CMAKE_PREFIX_PATH",
        "THINWIRE_MPI", "THINWIRE_SANITIZE", "THINWIRE_TORCH"]

Builds = collections.namedtuple("Builds", "old new")


def add_arguments(parser):
    parser.add_argument("commit", nargs="?", default=COMMIT,
                        help="the commit of before (%(default)s)")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build",
                        help="folder of the present build, configured (%(default)s)")
    parser.add_argument("--before", type=pathlib.Path,
                        help="folder for worktree and build of before (BUILD-before/COMMIT)")


def git(*arguments, folder=ROOT):
    done = subprocess.run(["git", "-C", folder, *arguments], text=True, capture_output=True,
                          check=False)
    if done.returncode != 0:
        sys.exit(f"git {' '.join(map(str, arguments))} in {folder} failed: {done.stderr.strip()}; "
                 "the comparison needs a checkout with the history back to that commit")
    return done.stdout.strip()


def write_if_other(path, text):
    """Leaves a file that has this text alone, so that nothing is built again."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def add_worktree(source, commit):
    """The commit in a worktree at `source`, with this folder's program added."""
    if not (source / ".git").exists():
        git("worktree", "prune")  # forgets one whose folder is gone
        git("worktree", "add", "--detach", source, commit)
    found = git("rev-parse", "HEAD", folder=source)
    if found != commit:
        sys.exit(f"{source} holds {found}, not {commit}; give another folder with --before")
    for name in ("attached.cpp", "CMakeLists.txt"):
        write_if_other(source / "tests/redesign" / name, (HERE / name).read_text())
    # Its own benchmarks too, which are built with the tests only.
    lists = (git("show", f"{commit}:CMakeLists.txt") +
             "\nadd_subdirectory(tests/redesign)\nadd_subdirectory(tests/bench)\n")
    write_if_other(source / "CMakeLists.txt", lists)


def cached(build):
    """CMake's cache of a build folder as a dictionary."""
    cache = build / "CMakeCache.txt"
    if not cache.exists():
        sys.exit(f"{build} is not configured; run ./build.sh, or give the folder with --build")
    return dict(re.findall(r"^(\w+):\w+=(.*)$", cache.read_text(), re.MULTILINE))


def configure(source, build, like):
    same = {key: like[key] for key in SAME if like.get(key)}
    command = ["cmake", "-S", source, "-B", build, "-G", "Ninja", "-DTHINWIRE_TESTS=OFF",
               "-DTHINWIRE_CUDA=OFF", "-DTHINWIRE_NCCL=OFF",
               *(f"-D{key}={value}" for key, value in same.items())]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    except subprocess.CalledProcessError:
        sys.exit("the tree of before cannot be configured")


def make(what, build, targets):
    print(f"building {what} in {build}", file=sys.stderr, flush=True)
    # It takes as many jobs as the memory has room for.
    done = subprocess.run([ROOT / "build.sh", build, *targets], check=False, stdout=sys.stderr)
    if done.returncode != 0:
        sys.exit(f"{what} cannot be built")


def prepare(options, targets=tuple(TARGETS)):
    """Builds what is missing; returns the build folders of before and now."""
    new = options.build.resolve()
    cache = cached(new)
    commit = git("rev-parse", "--verify", f"{options.commit}^{{commit}}")
    folder = (options.before or new.with_name(f"{new.name}-before") / commit[:12]).resolve()
    add_worktree(folder / "source", commit)
    configure(folder / "source", folder / "build", cache)
    make("the tree of before", folder / "build", targets)
    make("the present tree", new, targets)
    return Builds(folder / "build", new)


def parser(text):
    return argparse.ArgumentParser(description=text,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
