#!/usr/bin/env python3
"""The bits of before: short trainings by a commit of before and by the present tree, on this
machine with one thread a rank, compared by the hash of their parameters.

    bits.py                                  against the commit before there were layouts
    bits.py COMMIT --only 'gpt*' --jobs 2    against another, and some of the trainings
    bits.py --list                           the trainings and what they run, without running them

For whoever rebuilds something that must not change what is computed. The commit is built in a git
worktree of its own beside the build folder, without CUDA and NCCL; a second run builds nothing. Its
`thinwire train` must know the flags, and its library the functions of attached.cpp, that the
trainings below use. `git worktree remove --force build-before/COMMIT/source` takes it away.

Four kinds of training: by the command; stopped in the middle and resumed; the same, but the
present code goes on from the checkpoint that the old code wrote (beside the old code's own resume);
attached to torch's optimizers (attached.cpp), also with parameters that are frozen and thawed.

EXCEPTIONS lists what a redesign changes on purpose, each with its reason: they may differ, but not
fail. Begin a new redesign with an empty list, and move COMMIT in before.py.

The table ends with a count; exit 1 if anything differs that is not listed, or fails.
"""

import collections
import concurrent.futures
import fnmatch
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile

import before

sys.path += [str(before.HERE.parent / "bench"), str(before.HERE.parent / "launch")]
import end_to_end  # noqa: E402
import support  # noqa: E402

MLP = "--model mlp:hidden=96,48 --data synthetic:samples=512,test_samples=32,size=8"
# Several buckets, one of them of more than a segment of 512 Ki values.
WIDE = "--model mlp:hidden=700,700 --data synthetic:samples=256,test_samples=32 --bucket-mb 2.5"
CONVNET = "--model convnet --data synthetic:samples=256,test_samples=32,size=12"
RESNET = "--model resnet8 --data synthetic:samples=128,test_samples=32,size=8 --batch-size 8"
GPT = "--model gpt:layers=2,heads=2,width=32,dropout=0.1 --data text:TEXT,context=16"
SGD = "--lr 0.05 --momentum 0"
ADAM = "--optimizer adam --lr 0.002"
ADAMW = "--optimizer adamw --lr 0.002 --weight-decay 0.01 --clip-norm 1"
STEPS = 24

# kind: "" | resumed | handed over (the new code resumes what the old code wrote) | attached.
Training = collections.namedtuple("Training", "name ranks arguments over kind",
                                  defaults=["threads", ""])
T = Training

TRAININGS = [
    # Dense.
    T("mlp-dense-1", 1, f"{MLP} --lr 0.05 --momentum 0.9 --weight-decay 0.001"),
    T("mlp-dense-2", 2, f"{MLP} --lr 0.05 --momentum 0.9 --lr-schedule step:every=8,factor=0.5"),
    T("mlp-dense-3-by-label", 3, f"{MLP} {SGD} --partition by_label --bucket-mb 0.01"),
    T("convnet-dense-4-adam", 4, f"{CONVNET} {ADAM}"),
    T("resnet8-dense-2-clipped", 2, f"{RESNET} {SGD} --clip-norm 0.5"),
    T("gpt-dense-3-bf16-products", 3, f"{GPT} {ADAMW} --precision bf16"),
    T("mlp-dense-4-two-stage", 4, f"{MLP} {SGD} --exchange two_stage"),
    T("mlp-dense-3-uneven-last-batch", 3,
      "--model mlp --data synthetic:samples=500,test_samples=32,size=8 --steps 0 --epochs 2 "
      f"--batch-size 24 {SGD}"),
    # 16 bits.
    T("mlp-fp16-2", 2, f"{MLP} --compressor fp16 {SGD}"),
    T("convnet-bf16-3-no-feedback", 3, f"{CONVNET} --compressor bf16 --feedback none {SGD}"),
    # One bit.
    T("mlp-sign-1", 1, f"{MLP} --compressor sign {SGD}"),
    T("wide-sign-2", 2, f"{WIDE} --compressor sign {SGD} --steps 12"),
    T("convnet-sign-4", 4, f"{CONVNET} --compressor sign {SGD}"),
    T("resnet8-sign-2-momentum", 2, f"{RESNET} --compressor sign --lr 0.01 --momentum 0.9"),
    T("mlp-sign-3-rms-all-gather", 3,
      f"{MLP} --compressor sign:block=64,scale=rms --exchange all_gather {SGD}"),
    T("mlp-sign-2-no-feedback", 2, f"{MLP} --compressor sign --feedback none {SGD}"),
    T("gpt-sign-2-adamw-cosine", 2,
      f"{GPT} --compressor sign {ADAMW} --lr-schedule cosine:warmup=6"),
    T("gpt-sign-3-bf16-products", 3, f"{GPT} --compressor sign {SGD} --precision bf16"),
    T("mlp-sign-2-vectors-too", 2, f"{MLP} --compressor sign --min-dimensions 1 {SGD}"),
    T("mlp-sign-2-accumulate", 2, f"{MLP} --compressor sign --accumulate 3 {SGD} --batch-size 8"),
    # Few bits.
    T("mlp-quantize1-2-no-feedback", 2,
      f"{MLP} --compressor quantize:bits=1 --feedback none {SGD}"),
    T("mlp-quantize2-4", 4, f"{MLP} --compressor quantize:bits=2,block=64 {SGD}"),
    T("wide-quantize4-3", 3, f"{WIDE} --compressor quantize:bits=4 {SGD} --steps 12"),
    T("convnet-quantize4-3-max-min", 3,
      f"{CONVNET} --compressor quantize:bits=4,grid=max_min --exchange all_gather {ADAMW}"),
    T("mlp-quantize8-2-stochastic", 2,
      f"{MLP} --compressor quantize:bits=8,rounding=stochastic {SGD}"),
    T("gpt-quantize4-2-start-iter", 2, f"{GPT} --compressor quantize:bits=4 {ADAM} --start-iter 9"),
    # The largest.
    T("mlp-topk-3", 3, f"{MLP} --compressor topk:density=0.05 {SGD}"),
    T("wide-topk-2-two-stage", 2,
      f"{WIDE} --compressor topk:density=0.02 --exchange two_stage {SGD} --steps 12"),
    T("convnet-topk-2-exact", 2,
      f"{CONVNET} --compressor topk:density=0.05,block=256,select=exact {SGD}"),
    T("mlp-topk-4-by-label", 4,
      f"{MLP} --compressor topk:density=0.1 {SGD} --partition by_label:classes=3"),
    # Low rank.
    T("mlp-powersgd1-2", 2, f"{MLP} --compressor powersgd:rank=1 {SGD}"),
    T("wide-powersgd4-4", 4, f"{WIDE} --compressor powersgd:rank=4 {SGD} --steps 12"),
    T("convnet-powersgd2-3-cold", 3,
      f"{CONVNET} --compressor powersgd:rank=2,warm_start=false {ADAM}"),
    T("mlp-powersgd2-2-no-feedback", 2,
      f"{MLP} --compressor powersgd:rank=2 --feedback none {SGD}"),
    T("gpt-powersgd2-2-dense-names", 2,
      f"{GPT} --compressor powersgd:rank=2 --dense-names wte*,*fc.weight --dense-below 2000 {SGD}"),
    # The difference to what the others know.
    T("mlp-sign-2-econtrol", 2, f"{MLP} --compressor sign --feedback econtrol {SGD}"),
    T("mlp-quantize4-4-econtrol-stochastic", 4,
      f"{MLP} --compressor quantize:bits=4,rounding=stochastic --feedback econtrol {SGD}"),
    T("convnet-topk-3-econtrol-averages", 3,
      f"{CONVNET} --compressor topk:density=0.05 --feedback econtrol:eta=0.05,momentum=0.9 {SGD}"),
    T("mlp-sign-3-ef21", 3, f"{MLP} --compressor sign --feedback ef21 --exchange all_gather {SGD}"),
    T("mlp-topk-2-ef21-averages", 2,
      f"{MLP} --compressor topk:density=0.2 --feedback ef21:momentum=0.5 {SGD}"),
    # Processes.
    T("mlp-dense-3-mpirun", 3, f"{MLP} --lr 0.05 --momentum 0.9", "mpirun"),
    T("wide-sign-4-mpirun", 4, f"{WIDE} --compressor sign {SGD} --steps 12", "mpirun"),
    T("gpt-powersgd2-2-mpirun", 2, f"{GPT} --compressor powersgd:rank=2 {ADAMW}", "mpirun"),
    T("mlp-topk-3-mpirun", 3, f"{MLP} --compressor topk:density=0.05 {SGD}", "mpirun"),
    T("mlp-dense-4-sockets", 4, f"{MLP} {SGD} --bucket-mb 0.01", "sockets"),
    T("convnet-sign-2-sockets", 2, f"{CONVNET} --compressor sign {SGD}", "sockets"),
    T("mlp-quantize4-3-sockets", 3, f"{MLP} --compressor quantize:bits=4 {SGD}", "sockets"),
    # Stopped in the middle.
    T("mlp-dense-2-resumed", 2, f"{MLP} --lr 0.05 --momentum 0.9", kind="resumed"),
    T("convnet-sign-3-resumed", 3, f"{CONVNET} --compressor sign {SGD}", kind="resumed"),
    T("gpt-powersgd2-2-resumed-mpirun", 2, f"{GPT} --compressor powersgd:rank=2 {ADAMW}", "mpirun",
      "resumed"),
    T("mlp-topk-2-econtrol-resumed", 2,
      f"{MLP} --compressor topk:density=0.1 --feedback econtrol:momentum=0.9 {SGD}",
      kind="resumed"),
    # And by the present code from there.
    T("mlp-dense-3-handed-over", 3, f"{MLP} {ADAM}", kind="handed over"),
    T("resnet8-sign-2-handed-over", 2, f"{RESNET} --compressor sign --lr 0.01 --momentum 0.9",
      kind="handed over"),
    T("gpt-powersgd2-3-handed-over", 3, f"{GPT} --compressor powersgd:rank=2 {ADAMW}",
      kind="handed over"),
    T("mlp-quantize4-2-start-iter-handed-over", 2,
      f"{MLP} --compressor quantize:bits=4,rounding=stochastic {SGD} --start-iter 16",
      kind="handed over"),
    T("mlp-topk-4-handed-over-mpirun", 4, f"{MLP} --compressor topk:density=0.05 {SGD}", "mpirun",
      "handed over"),
    T("mlp-sign-2-econtrol-handed-over", 2,
      f"{MLP} --compressor sign --feedback econtrol:momentum=0.5 {SGD}", kind="handed over"),
    # Attached to torch's optimizers.
    *(T(f"attached-{name}", ranks, arguments, kind="attached") for name, ranks, arguments in [
        ("dense-2", 2, "optimizer=adam clip=0.1"),
        ("dense-3-accumulate", 3, "accumulate=3"),
        ("sign-4-rollback", 4, "compressor=sign rollback=true"),
        ("quantize4-2-double", 2, "compressor=quantize:bits=4 dtype=double optimizer=adamw"),
        ("topk-3-rollback", 3, "compressor=topk:density=0.1 rollback=true accumulate=2"),
        ("powersgd2-2-start-iter", 2, "compressor=powersgd:rank=2 start_iter=7 rollback=true"),
        ("sign-2-econtrol", 2, "compressor=sign feedback=econtrol"),
        ("frozen-dense-2", 2, "freeze=true optimizer=adamw"),
        ("frozen-dense-3", 3, "freeze=true"),
        ("frozen-dense-4-one-bucket", 4, "freeze=true bucket=1000000"),
        ("frozen-sign-3", 3, "freeze=true compressor=sign"),
        ("frozen-quantize4-2-rollback", 2,
         "freeze=true compressor=quantize:bits=4 exchange=all_gather rollback=true"),
        ("frozen-topk-4", 4, "freeze=true compressor=topk:density=0.1 optimizer=adam"),
        ("frozen-powersgd2-3", 3, "freeze=true compressor=powersgd:rank=2 accumulate=2"),
        ("frozen-topk-2-ef21", 2, "freeze=true compressor=topk:density=0.2 feedback=ef21"),
    ]),
]

# What may differ, by a pattern of names, and why.
EXCEPTIONS = {}


class Failed(Exception):
    """A program that ended with an error: its command and what it said."""


def reason(name):
    """Why a training may differ; None if it may not."""
    return next((why for pattern, why in EXCEPTIONS.items() if fnmatch.fnmatch(name, pattern)),
                None)


def verdict(name, old, new):
    if old == new:
        return "equal"
    return "differs (listed)" if reason(name) else "DIFFERS"


def end_hash(folder):
    return support.end_of(folder)["parameters_hash"]


def has_mpi(build):
    said = support.Program(build / "thinwire").run("info").stdout
    return support.mpirun() is not None and "off" not in re.search(r"MPI +(.*)", said)[1]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def places(training):
    """The environments of the processes to start: one, or one a rank with torchrun's variables."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if training.over == "threads":
        return [support.environment(**threads)]
    if training.over == "mpirun":
        return [{**support.mpi_environment(), **threads}]
    port = str(free_port())
    return [support.environment(
        **threads, RANK=str(rank), WORLD_SIZE=str(training.ranks), LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(training.ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in range(training.ranks)]


def run(command, environments):
    """Starts the command in each of the environments; what the first one printed."""
    command = list(map(str, command))
    processes = [subprocess.Popen(command, env=environment, text=True, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                 for environment in environments]
    try:
        said = [process.communicate(timeout=300) for process in processes]
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(command)}\ndid not end in {error.timeout:.0f} s") from error
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, said):
        if process.returncode != 0:
            raise Failed(f"{' '.join(command)}\nended with {process.returncode}\n{out}{err}")
    return said[0][0]


def command_of(build, training, text, *more):
    """Without what comes first under mpirun. Of a flag given twice the last one stays."""
    if training.kind == "attached":
        return [build / "tests/redesign/attached", f"ranks={training.ranks}",
                *training.arguments.split()]
    words = (f"--steps {STEPS} --batch-size 16 --report-every 8 --device cpu "
             f"{training.arguments}").replace("TEXT", str(text)).split() + list(more)
    flags = dict(zip(words[::2], words[1::2]))
    if training.over == "threads":
        flags["--ranks"] = training.ranks
    if training.over == "sockets":
        flags["--backend"] = "sockets"
    command = [build / "thinwire", "train", *(word for flag in flags.items() for word in flag)]
    if training.over == "mpirun":
        command = [support.mpirun(), "-np", training.ranks, *command]
    return command


def train(build, training, text, folder, *more):
    run(command_of(build, training, text, "--output", folder, *more), places(training))
    return end_hash(folder)


def half(training):
    found = re.search(r"--steps (\d+)", training.arguments)
    return str((int(found[1]) if found else STEPS) // 2)


def compare(training, builds, text, folder):
    """The hashes of old and new."""
    if training.kind == "attached":
        return [run(command_of(build, training, text), places(training)).split()[-1]
                for build in builds]
    old, new = folder / "old", folder / "new"
    if training.kind == "":
        return [train(build, training, text, output)
                for build, output in zip(builds, (old, new))]
    train(builds.old, training, text, old, "--steps", half(training))
    if training.kind == "handed over":
        shutil.copytree(old, new)
    else:
        train(builds.new, training, text, new, "--steps", half(training))
    return [train(build, training, text, output, "--resume", "auto")
            for build, output in zip(builds, (old, new))]


def shown(training):
    command = [pathlib.Path(str(word)).name if i == 0 else str(word) for i, word in
               enumerate(command_of(pathlib.Path("BUILD"), training, "TEXT"))]
    if training.over == "mpirun":
        command[0], command[3] = "mpirun", "thinwire"
    before_it = {"sockets": f"{training.ranks} processes: ", "threads": "", "mpirun": ""}
    after_it = {"": "", "attached": "", "resumed": f", resumed at {half(training)}",
                "handed over": f", resumed at {half(training)} from what the old code wrote"}
    return before_it[training.over] + " ".join(command) + after_it[training.kind]


def list_trainings(trainings):
    for training in trainings:
        print(f"{training.name}\n    {shown(training)}")
        if reason(training.name):
            print(f"    may differ: {reason(training.name)}")
    print(f"{len(trainings)} trainings")


def row(name, old, new, what):
    return f"{name:<42} {old:<16} {new:<16} {what}"


def run_all(trainings, builds, jobs, root):
    """Prints a line for each; returns how many had which verdict."""
    text = root / "text"
    end_to_end.write_text(text)

    def one(training):
        folder = root / training.name
        folder.mkdir()
        return compare(training, builds, text, folder)

    counts = collections.Counter()
    details = []
    print(row("training", "old", "new", ""), flush=True)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for training, future in [(each, pool.submit(one, each)) for each in trainings]:
            try:
                hashes = future.result()
                what = verdict(training.name, *hashes)
            except Failed as failed:
                hashes, what = ["", ""], "FAILED"
                details.append(str(failed))
            if what == "DIFFERS":
                details.append(f"{training.name}: {shown(training)}")
            counts[what] += 1
            print(row(training.name, *hashes, what), flush=True)
    for detail in details:
        print(detail, file=sys.stderr)
    return counts


def parse(arguments):
    parser = before.parser(__doc__)
    before.add_arguments(parser)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(),
                        help="trainings at the same time (%(default)s)")
    parser.add_argument("--only", metavar="PATTERN", default="*",
                        help="names of trainings, as a shell matches them")
    parser.add_argument("--list", action="store_true", help="list the trainings and end")
    parser.add_argument("--keep", type=pathlib.Path, metavar="FOLDER",
                        help="a new folder for what the trainings write, which is kept")
    options = parser.parse_args(arguments)
    options.trainings = [t for t in TRAININGS if fnmatch.fnmatch(t.name, options.only)]
    if not options.trainings:
        parser.error(f"no training is called {options.only}; see --list")
    if options.jobs < 1:
        parser.error("--jobs is less than 1")
    return options


def main():
    options = parse(sys.argv[1:])
    if options.list:
        list_trainings(options.trainings)
        return 0
    builds = before.prepare(options)
    trainings = options.trainings
    if not all(map(has_mpi, builds)):
        trainings = [training for training in trainings if training.over != "mpirun"]
    left_out = len(options.trainings) - len(trainings)
    with tempfile.TemporaryDirectory(prefix="thinwire-bits-") as scratch:
        root = options.keep or pathlib.Path(scratch)
        root.mkdir(parents=True, exist_ok=root == pathlib.Path(scratch))
        counts = run_all(trainings, builds, options.jobs, root)
    print(f"{len(trainings)} trainings: " + ", ".join(
        f"{counts[what]} {what}" for what in ("equal", "differs (listed)", "DIFFERS", "FAILED")) +
        (f"; {left_out} left out: there is no mpirun, or MPI is off" if left_out else ""))
    return 1 if counts["DIFFERS"] or counts["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
