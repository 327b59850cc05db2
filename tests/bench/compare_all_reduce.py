#!/usr/bin/env python3
"""Our all-reduce, dense and compressed, against PyTorch's gloo, its DDP and MPI's own, through the
network lab: one after the other, several times over, medians and ratios.

    compare_all_reduce.py                               dense, 100mbit and 1gbit, 2 and 4 ranks
    compare_all_reduce.py --subjects dense,sign,gloo --ranks 2 --rates 1gbit
                                                        1 bit against dense, and bytes on the wire
    compare_all_reduce.py --subjects gloo,sign,int4,ddp-powersgd,ddp-bf16 --shapes resnet50
                                                        a model's tensors instead of one matrix

Ours are dense (the plain sum), sign, int4, topk, powersgd (rank 4) and bf16, by the trainer's
reducer with every guard on; see `thinwire bench --help`. Of a model's tensors the dense ones and
MPI's are one sum of all values; DDP's are one bucket (torch_all_reduce.py says why, and what of DDP
is timed), and ours are the trainer's buckets.

x dense: ratio of times to the first subject's, median of the rounds. sent: by one rank for one run,
as our meters count, and for PyTorch's as its interface does. counted: bytes that the lab's
interfaces sent over all bytes that the meters claim. arithmetic: time of rank 0 outside of
collectives.

Run it as root on a machine that does nothing else, after a build (build.sh). PyTorch needs Python
modules that libtorch does not: they are put into BUILD/peers at the first run. All have one thread
for arithmetic.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import lab

HERE = lab.HERE
RESNET50 = 4 * 25_557_032  # bytes


def ours(compressor):
    def run(options, ranks, rate, folder):
        command = [options.build / "thinwire", "bench", "all-reduce", "--iterations",
                   options.iterations, "--warmup", options.warmup, "--timeout", 600,
                   "--compressor", compressor, "--backend", options.backend,
                   "--shapes", options.shapes, "--json", folder / "result.json"]
        if options.shapes == "flat":
            command += ["--min-bytes", options.bytes, "--max-bytes", options.bytes]
        else:
            command += ["--bucket-mb", options.bucket_mb]
        lab.run(lab.launcher_of(options.backend), ranks, rate, folder / "report.json", command,
                OMP_NUM_THREADS="1")
        result = json.loads((folder / "result.json").read_text())
        links = json.loads((folder / "report.json").read_text())["interfaces"]
        row = result["results"][0]
        assert row["wrong"] == 0, row
        counted = sum(link["tx_bytes"] for link in links)
        return {"time_us": row["time_us"], "wire_bytes": row["wire_bytes"],
                "arithmetic_us": row["time_us"] - row["in_collectives_us"],
                "counted_to_metered": counted / sum(result["wire_bytes_total"])}
    return run


def pytorch(method):
    def run(options, ranks, rate, folder):
        lab.run("each", ranks, rate, folder / "report.json",
                [lab.python(options.build), HERE / "torch_all_reduce.py", method, options.shapes,
                 options.bytes, options.iterations, options.warmup, folder / "result.json"],
                PYTHONPATH=str(options.build / "peers"), OMP_NUM_THREADS="1")
        return json.loads((folder / "result.json").read_text())
    return run


def mpi(settings):
    def run(options, ranks, rate, folder):
        lab.run("mpirun", ranks, rate, folder / "report.json",
                [options.build / "tests/bench/mpi_all_reduce", options.bytes, options.iterations,
                 options.warmup, folder / "result.json"], **settings)
        return json.loads((folder / "result.json").read_text())
    return run


SUBJECTS = {
    "dense": ours("none"),
    "sign": ours("sign"),
    "int4": ours("quantize:bits=4"),
    "topk": ours("topk"),
    "powersgd": ours("powersgd:rank=4"),
    "bf16": ours("bf16"),
    "gloo": pytorch("all_reduce"),
    "ddp": pytorch("ddp"),
    "ddp-bf16": pytorch("ddp-bf16"),
    "ddp-powersgd": pytorch("ddp-powersgd"),
    "mpi": mpi({}),  # the lab's settings: btl_tcp_flags 1
    # MPI's ring and its segmented ring instead of the choice that it makes itself.
    "mpi-ring": mpi({"OMPI_MCA_coll_tuned_use_dynamic_rules": "1",
                     "OMPI_MCA_coll_tuned_allreduce_algorithm": "4"}),
    "mpi-segmented": mpi({"OMPI_MCA_coll_tuned_use_dynamic_rules": "1",
                          "OMPI_MCA_coll_tuned_allreduce_algorithm": "5"}),
    "mpi-untuned": mpi({"OMPI_MCA_btl_tcp_flags": ""}),
}


def compare(options, ranks, rate):
    """One row per subject: medians over the rounds."""
    samples = {subject: [] for subject in options.subjects}
    for number in range(options.rounds):
        for subject in options.subjects:
            with tempfile.TemporaryDirectory() as folder:
                sample = SUBJECTS[subject](options, ranks, rate, pathlib.Path(folder))
            samples[subject].append(sample)
            print(f"  round {number + 1}, {ranks} ranks, {rate}, {subject}: "
                  f"{sample['time_us'] / 1e3:.1f} ms", file=sys.stderr, flush=True)
    rows = []
    for subject in options.subjects:
        times = [sample["time_us"] / 1e3 for sample in samples[subject]]
        row = {"ranks": ranks, "rate": rate, "subject": subject,
               "median_ms": statistics.median(times), "times_ms": times}
        for name in ("wire_bytes", "arithmetic_us", "counted_to_metered"):
            if name in samples[subject][0]:
                row[name] = statistics.median(sample[name] for sample in samples[subject])
        rows.append(row)
    # Round by round, so that a slow minute of the machine does not count.
    first = options.subjects[0]
    for row in rows:
        ratios = [other["time_us"] / mine["time_us"]
                  for mine, other in zip(samples[first], samples[row["subject"]])]
        row[f"to_{first}"] = statistics.median(ratios)
    return rows


def table(rows, first):
    lines = [f"{'ranks':>5} {'rate':>8} {'subject':>14} {'median ms':>10} {'least':>9} {'most':>9} "
             f"{'x ' + first:>9} {'sent MB':>9} {'counted':>8} {'arithmetic ms':>14}"]
    for row in rows:
        wire = f"{row['wire_bytes'] / 1e6:.2f}" if "wire_bytes" in row else ""
        arithmetic = f"{row['arithmetic_us'] / 1e3:.1f}" if "arithmetic_us" in row else ""
        counted = f"{row['counted_to_metered']:.3f}" if "counted_to_metered" in row else ""
        lines.append(f"{row['ranks']:>5} {row['rate']:>8} {row['subject']:>14} "
                     f"{row['median_ms']:>10.1f} {min(row['times_ms']):>9.1f} "
                     f"{max(row['times_ms']):>9.1f} {row['to_' + first]:>9.3f} {wire:>9} "
                     f"{counted:>8} {arithmetic:>14}")
    return "\n".join(lines)


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--build", type=pathlib.Path, default=HERE.parent.parent / "build")
    parser.add_argument("--backend", default="mpi", choices=["mpi", "sockets", "auto"],
                        help="of our subjects")
    parser.add_argument("--shapes", default="flat", choices=["flat", "resnet50"],
                        help="one matrix of --bytes, or ResNet-50's 161 tensors")
    parser.add_argument("--subjects", type=words, default=["dense", "gloo", "mpi", "mpi-ring"],
                        help="of " + ", ".join(SUBJECTS) + "; ratios are to the first")
    parser.add_argument("--ranks", type=words, default=["2", "4"])
    parser.add_argument("--rates", type=words, default=["100mbit", "1gbit"])
    parser.add_argument("--bytes", type=int, default=102_400_000, help="25.6 M floats")
    parser.add_argument("--bucket-mb", type=int, default=25,
                        help="MiB of ours that travel together, with --shapes resnet50")
    parser.add_argument("--iterations", type=int, default=3, help="timed in each round")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="file for the rows")
    options = parser.parse_args()
    unknown = [subject for subject in options.subjects if subject not in SUBJECTS]
    if unknown:
        parser.error(f"no subject {', '.join(unknown)}; give some of {', '.join(SUBJECTS)}")
    if options.shapes == "resnet50":
        options.bytes = RESNET50
    return options


def main():
    options = parse()
    options.build = options.build.resolve()
    lab.prepare_peers(options.build)
    rows = []
    try:
        for rate in options.rates:
            for ranks in options.ranks:
                rows += compare(options, int(ranks), rate)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd))} ended with {error.returncode}:\n{error.stderr}")
    print(table(rows, options.subjects[0]))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
