#!/usr/bin/env python3
"""Whole training steps through the network lab: ours against PyTorch's DDP over gloo and against
the same step without communication, one after the other, several times over.

    end_to_end.py                                      mlp and gpt, 4 ranks, 1gbit
    end_to_end.py --models gpt --subjects sign,ddp,ddp-bf16,alone --rounds 3
    end_to_end.py --where                              and where the time of our steps goes

The models have ten million parameters, in our trainer and in PyTorch the same ones (the script
compares their number), with the same batch and SGD. Ours are dense, sign, int4, topk, powersgd and
bf16, over --backend auto, which is MPI under the lab's mpirun; PyTorch's are ddp, ddp-bf16 (its
hook) and ddp-powersgd (its hook, in one bucket). alone and torch-alone are the same step without
communication: as many processes as ranks, at the same time in the same lab, each a world of one.
A rank has one thread for arithmetic (OMP_NUM_THREADS=1), ours and PyTorch's; both communicate in
threads of their own.

samples/s: of all ranks, median over rounds of the median over intervals, the first of each run
left out. x SUBJECT: ratio of samples/s to that subject, median of the rounds. to alone: time of a
step over that without communication. sent: by rank 0 for one step; ours as our meters count,
PyTorch's as its interface does.

Run it as root on a machine that does nothing else, after a build (build.sh).
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import lab

HERE = lab.HERE
CONTEXT = 32
VOCABULARY = 96  # characters of the text that is made up

TASKS = {
    "mlp": {"model": "mlp", "batch": 32,
            "arguments": {"inputs": 784, "hidden": [2048, 2048, 2048], "classes": 10}},
    # Few characters, so that arithmetic takes less than a quarter of a dense sum's wire.
    "gpt": {"model": "gpt", "batch": 1,
            "arguments": {"vocabulary": VOCABULARY, "context": CONTEXT, "layers": 6, "heads": 6,
                          "width": 384}},
}
COMPRESSORS = {"dense": "none", "sign": "sign", "int4": "quantize:bits=4", "topk": "topk",
               "powersgd": "powersgd:rank=4", "bf16": "bf16"}
TORCH = {"ddp": "ddp", "ddp-bf16": "ddp-bf16", "ddp-powersgd": "ddp-powersgd",
         "torch-alone": "alone"}
SUBJECTS = [*COMPRESSORS, "alone", *TORCH]

# Makes a rank forget that it is one.
ALONE = ("out=$1; shift; out=$out.$RANK; "
         "unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT; "
         "exec \"$@\" --output \"$out\"")


def write_text(path):
    """All printable characters, in an order that is no use to learn but the same every time."""
    state, characters = 1, []
    for _ in range(20_000):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        characters.append(32 + (state >> 16) % 95)
    characters[::200] = [10] * len(characters[::200])  # the 96th
    path.write_bytes(bytes(characters))


def train_command(task, options, folder):
    arguments = task["arguments"]
    if task["model"] == "mlp":
        model = f"mlp:hidden={','.join(map(str, arguments['hidden']))}"
        data = "synthetic:samples=16384,test_samples=64"
    else:
        write_text(folder / "text")
        model = "gpt:" + ",".join(f"{key}={arguments[key]}" for key in
                                  ("layers", "heads", "width")) + ",dropout=0"
        data = f"text:{folder / 'text'},context={CONTEXT}"
    return [options.build / "thinwire", "train", "--model", model, "--data", data, "--batch-size",
            task["batch"], "--lr", 0.01, "--steps", task["steps"], "--report-every",
            task["report_every"], "--check-every", 0, "--device", "cpu"]


def read_run(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    reports = [line for line in lines if "event" not in line]
    return {"samples_per_second": [report["samples_per_second"] for report in reports],
            "wire_bytes": [report["bytes_wire"] for report in reports]}


def together(runs):
    """Processes that work at the same time: their rates add up."""
    return {"parameters": runs[0]["parameters"],
            "samples_per_second": [sum(rates) for rates in
                                   zip(*(run["samples_per_second"] for run in runs))],
            "wire_bytes": runs[0]["wire_bytes"]}


def parameters_in(output):
    return int(re.search(r"with (\d+) parameters", output)[1])


def run_ours(subject, task, options, folder, trace=None):
    command = train_command(task, options, folder)
    if trace:
        command += ["--trace", trace]
    run = folder / "run"
    if subject == "alone":
        output = lab.run("each", options.ranks, options.rate, folder / "report.json",
                         ["sh", "-c", ALONE, "sh", run, *command], OMP_NUM_THREADS="1")
        return together([{**read_run(run.with_name(f"run.{rank}")),
                          "parameters": parameters_in(output)} for rank in range(options.ranks)])
    command += ["--compressor", COMPRESSORS[subject], "--backend", options.backend,
                "--output", run]
    output = lab.run(lab.launcher_of(options.backend), options.ranks, options.rate,
                     folder / "report.json", command, OMP_NUM_THREADS="1")
    return {**read_run(run), "parameters": parameters_in(output)}


def run_torch(subject, task, options, folder):
    result = folder / "result.json"
    lab.run("each", options.ranks, options.rate, folder / "report.json",
            [lab.python(options.build), HERE / "torch_train.py", TORCH[subject], json.dumps(task),
             result], PYTHONPATH=str(options.build / "peers"), OMP_NUM_THREADS="1")
    if TORCH[subject] != "alone":
        return json.loads(result.read_text())
    return together([json.loads(pathlib.Path(f"{result}.{rank}").read_text())
                     for rank in range(options.ranks)])


def steady(run):
    """One run as its rate and bytes per step, without its first interval."""
    return {"samples_per_second": statistics.median(run["samples_per_second"][1:]),
            "wire_bytes": statistics.median(run["wire_bytes"][1:])}


def summarise(samples, task, ranks):
    """{subject: [one `steady` per round]} as one row per subject."""
    rows = []
    for subject, rounds in samples.items():
        rates = [one["samples_per_second"] for one in rounds]
        row = {"model": task["model"], "subject": subject,
               "samples_per_second": statistics.median(rates), "least": min(rates),
               "most": max(rates),
               "step_ms": 1e3 * ranks * task["batch"] / statistics.median(rates),
               "wire_bytes": statistics.median(one["wire_bytes"] for one in rounds)}
        # Round by round, so that a slow minute of the machine does not count.
        for other in ("ddp", "ddp-bf16", "alone"):
            if other in samples:
                row[f"to_{other}"] = statistics.median(
                    mine / theirs["samples_per_second"]
                    for mine, theirs in zip(rates, samples[other]))
        rows.append(row)
    return rows


def table(rows):
    def ratio(row, name):
        return f"{row[name]:.2f}" if name in row else ""

    lines = [f"{'model':>6} {'subject':>13} {'samples/s':>10} {'least':>8} {'most':>8} "
             f"{'ms a step':>10} {'x ddp':>6} {'x bf16':>7} {'to alone':>9} {'sent MB':>8}"]
    for row in rows:
        to_alone = f"{1 / row['to_alone']:.2f}" if "to_alone" in row else ""
        lines.append(f"{row['model']:>6} {row['subject']:>13} {row['samples_per_second']:>10.1f} "
                     f"{row['least']:>8.1f} {row['most']:>8.1f} {row['step_ms']:>10.1f} "
                     f"{ratio(row, 'to_ddp'):>6} {ratio(row, 'to_ddp-bf16'):>7} "
                     f"{to_alone:>9} {row['wire_bytes'] / 1e6:>8.2f}")
    return "\n".join(lines)


def dense_wire_ms(parameters, ranks, rate):
    """The least that a dense sum takes: TCP delivers .957 of a shaped link."""
    number, unit = re.fullmatch(r"([0-9.]+)([kmg])bit", rate).groups()
    bits = float(number) * {"k": 1e3, "m": 1e6, "g": 1e9}[unit]
    return 1e3 * 2 * (ranks - 1) / ranks * 4 * parameters * 8 / (0.957 * bits)


def spent(events, steps):
    """ms of rank 0 by what it did, per step, of a trace's events, without the first step."""
    spans = [event for event in events if event["ph"] == "X" and event["pid"] == 0]
    forwards = sorted(event["ts"] for event in spans if event["name"] == "forward")
    assert len(forwards) == steps, (len(forwards), steps)
    begin = forwards[1]
    total = {}
    for event in spans:
        if event["ts"] >= begin:
            total[event["name"]] = total.get(event["name"], 0) + event["dur"]
    last_update = max(event["ts"] + event["dur"] for event in spans if event["name"] == "update")
    total["step"] = last_update - begin
    return {name: duration / 1e3 / (steps - 1) for name, duration in total.items()}


def show_where(task, options):
    for subject in options.subjects:
        if subject in COMPRESSORS:
            with tempfile.TemporaryDirectory() as name:
                folder = pathlib.Path(name)
                run_ours(subject, task, options, folder, trace=folder / "trace.json")
                times = spent(json.loads((folder / "trace.json").read_text()), task["steps"])
            print(f"{task['model']}, {subject}, ms of rank 0 per step: " +
                  ", ".join(f"{what} {ms:.1f}" for what, ms in
                            sorted(times.items(), key=lambda item: -item[1])))


def compare(task, options):
    samples = {subject: [] for subject in options.subjects}
    parameters = {}
    for number in range(options.rounds):
        for subject in options.subjects:
            run = run_torch if subject in TORCH else run_ours
            with tempfile.TemporaryDirectory() as folder:
                result = run(subject, task, options, pathlib.Path(folder))
            parameters[subject] = result["parameters"]
            samples[subject].append(steady(result))
            print(f"  round {number + 1}, {task['model']}, {subject}: "
                  f"{samples[subject][-1]['samples_per_second']:.1f} samples/s", file=sys.stderr,
                  flush=True)
    assert len(set(parameters.values())) == 1, f"these are not the same model: {parameters}"
    count = next(iter(parameters.values()))
    rows = summarise(samples, task, options.ranks)
    wire = dense_wire_ms(count, options.ranks, options.rate)
    print(f"{task['model']}: {count} parameters, {options.ranks} ranks of {task['batch']} samples, "
          f"{options.rate}: a dense sum takes {wire:.0f} ms of wire at least", end="")
    alone = [row["step_ms"] for row in rows if row["subject"] == "alone"]
    print(f", compute {alone[0]:.0f} ms, {alone[0] / wire:.2f} of that" if alone else "")
    return rows


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--build", type=pathlib.Path, default=HERE.parent.parent / "build")
    parser.add_argument("--models", type=words, default=list(TASKS))
    parser.add_argument("--subjects", type=words,
                        default=["sign", "int4", "dense", "alone", "ddp", "ddp-bf16",
                                 "torch-alone"], help="of " + ", ".join(SUBJECTS))
    parser.add_argument("--backend", default="auto", choices=["auto", "mpi", "sockets"])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--steps", type=int, default=40, help="of each run")
    parser.add_argument("--report-every", type=int, default=8, help="steps of an interval")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--where", action="store_true", help="trace one more run of each of ours")
    parser.add_argument("--json", type=pathlib.Path, help="file for the rows")
    options = parser.parse_args()
    for name, given, known in (("model", options.models, TASKS),
                               ("subject", options.subjects, SUBJECTS)):
        for word in given:
            if word not in known:
                parser.error(f"no {name} {word}; give some of {', '.join(known)}")
    if options.steps < 2 * options.report_every:
        parser.error("--steps must be at least two intervals of --report-every: the first one is "
                     "left out")
    return options


def main():
    options = parse()
    options.build = options.build.resolve()
    lab.prepare_peers(options.build)
    rows = []
    try:
        for model in options.models:
            task = {**TASKS[model], "steps": options.steps, "report_every": options.report_every}
            rows += compare(task, options)
            if options.where:
                show_where(task, options)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd))} ended with {error.returncode}:\n{error.stderr}")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
