#!/usr/bin/env python3
"""Do compressed gradients reach what dense ones reach? Trains every model with every method over
paired seeds and writes docs/convergence.md.

    table.py                        everything: some hours on two cores
    table.py --experiments convnet --methods none,sign
    table.py --heterogeneous        ranks of few classes: EF, EF21 and EControl side by side
    table.py --quick                a minute: do the commands work? writes into BUILD/convergence

A result is kept in BUILD/convergence/results.json as soon as its run has ended, and not computed
again unless its command changed (after a change of the code delete the file); a run that was
interrupted starts anew. Runs of one seed begin with the same weights and see the same samples in
the same order, so methods are compared seed by seed with the dense run. Learning rates are the
dense run's. A run whose gradients stay infinite has diverged, which is a result; a command that
fails otherwise is named and left out of the table.
"""

import argparse
import json
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DENSE = "none"
INTERNAL = 70  # exit code

GPT = "--ranks 2 --model gpt:layers=2,heads=4,width=64 --data text --batch-size 16"
EXPERIMENTS = {
    "convnet": {
        "title": "convnet on Fashion-MNIST, 4 ranks, 4 epochs", "score": "accuracy",
        "arguments": "--ranks 4 --model convnet --data fashion-mnist --batch-size 32 --epochs 4 "
                     "--lr 0.5 --lr-schedule cosine:warmup=200"},
    # EControl sends a coordinate of top-k 1 % every hundredth step or so: more and smaller steps.
    "convnet-small-steps": {
        "title": "convnet on Fashion-MNIST, 4 ranks, 6 epochs of small steps", "score": "accuracy",
        "methods": [DENSE, "topk", "topk, EControl", "topk, EControl, momentum"],
        "arguments": "--ranks 4 --model convnet --data fashion-mnist --batch-size 16 --epochs 6 "
                     "--lr 0.25 --lr-schedule cosine:warmup=400"},
    "resnet8": {
        "title": "resnet8 on Fashion-MNIST, 2 ranks, 2 epochs", "score": "accuracy",
        "arguments": "--ranks 2 --model resnet8 --data fashion-mnist --batch-size 64 --epochs 2 "
                     "--lr 0.5 --lr-schedule cosine:warmup=200"},
    "resnet8-small-steps": {
        "title": "resnet8 on Fashion-MNIST, 2 ranks, 8 epochs of small steps", "score": "accuracy",
        "methods": [DENSE, "topk", "topk, EControl, momentum"],
        "arguments": "--ranks 2 --model resnet8 --data fashion-mnist --batch-size 8 --epochs 8 "
                     "--lr 0.03 --lr-schedule cosine:warmup=800"},
    "gpt": {
        "title": "gpt of .1 million parameters on the Jargon File, 2 ranks, SGD, 4 epochs",
        "score": "loss",
        "arguments": f"{GPT} --epochs 4 --optimizer sgd --lr 0.25 "
                     "--lr-schedule cosine:warmup=100"},
    "gpt-adamw": {
        "title": "gpt of .1 million parameters on the Jargon File, 2 ranks, AdamW, 2 epochs",
        "score": "loss",
        "arguments": f"{GPT} --epochs 2 --optimizer adamw --lr 0.005 "
                     "--lr-schedule cosine:warmup=100 --weight-decay 0.01 --clip-norm 1"},
}
METHODS = {
    DENSE: "--compressor none",
    "sign": "--compressor sign",
    "int4": "--compressor quantize:bits=4,grid=symmetric",
    "int4, max-min": "--compressor quantize:bits=4,grid=max_min",
    "topk": "--compressor topk:density=0.01",
    "topk, EControl": "--compressor topk:density=0.01 --feedback econtrol",
    "topk, EControl, momentum": "--compressor topk:density=0.01 "
                                "--feedback econtrol:eta=0.01,momentum=0.9",
    "powersgd": "--compressor powersgd:rank=4",
}

PARTITION = "--partition by_label"
HETEROGENEOUS_EXPERIMENTS = {
    "convnet-by-label": {
        "title": "convnet on Fashion-MNIST dealt by label, 4 ranks of 3 classes, 4 epochs",
        "score": "accuracy",
        "arguments": f"{EXPERIMENTS['convnet']['arguments']} {PARTITION}"},
}
HETEROGENEOUS_METHODS = {
    DENSE: "--compressor none",
    **{f"{coding}, {word}": f"--compressor {compressor} --feedback {feedback}"
       for coding, compressor in (("topk", "topk:density=0.01"), ("sign", "sign"))
       for word, feedback in (("EF", "error_feedback"), ("EF21", "ef21"),
                              ("EControl", "econtrol"))},
    "topk, EF21, momentum": "--compressor topk:density=0.01 --feedback ef21:momentum=0.9",
    "topk, EControl, momentum": METHODS["topk, EControl, momentum"],
}

QUICK = ("--data synthetic:samples=512,test_samples=128,size=8 --batch-size 8 --epochs 1 "
         "--model mlp:hidden=64 --lr 0.05 --ranks 2")
QUICK_TEXT = ("--data text --batch-size 2 --model gpt:layers=1,heads=2,width=32 --lr 0.05 "
              "--ranks 2 --steps 4")


def quick(experiments):
    """The same experiments, too short to say anything."""
    for name, experiment in experiments.items():
        arguments = QUICK_TEXT if experiment["score"] == "loss" else QUICK
        if PARTITION in experiment["arguments"]:
            arguments += " " + PARTITION
        yield name, {**experiment, "title": "quick: " + experiment["title"],
                     "arguments": arguments}


class Results:
    """What runs have ended with, by key, in a file that is whole at any time."""

    def __init__(self, path):
        self.path = path
        self.entries = json.loads(path.read_text()) if path.exists() else {}

    def find(self, key, command):
        entry = self.entries.get(key)
        return entry if entry and entry["command"] == command else None

    def add(self, key, entry):
        self.entries[key] = entry
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.entries, indent=1) + "\n")
        partial.replace(self.path)


def command_of(experiment, method_arguments, seed):
    """What a reader can repeat: without the program's place and the output folder."""
    return f"{experiment['arguments']} {method_arguments} --seed {seed}"


def methods_of(experiment, methods):
    """Those that the experiment is made with: all, or the ones that it names."""
    return {method: arguments for method, arguments in methods.items()
            if method in experiment.get("methods", methods)}


def train(program, command, folder):
    """The run's last report, or {"diverged": why}. RuntimeError if the command failed otherwise."""
    shutil.rmtree(folder, ignore_errors=True)
    done = subprocess.run([program, "train", *shlex.split(command), "--report-every", "100",
                           "--output", folder], text=True, capture_output=True, check=False)
    if done.returncode == INTERNAL and "steps in a row were rolled back" in done.stderr:
        return {"diverged": done.stderr.strip().splitlines()[-1]}
    if done.returncode != 0:
        raise RuntimeError(f"ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    end = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert end.get("event") == "end", end
    shutil.rmtree(folder)
    return {name: end[name] for name in ("test_accuracy", "test_loss", "seconds", "bytes_dense",
                                         "bytes_wire", "skipped", "parameters_hash")}


def collect(program, experiments, methods, seeds, results, folder, say):
    """Runs what `results` lacks. Returns what failed, by key."""
    failed = {}
    for name, experiment in experiments.items():
        # Seed by seed, so that an early end leaves pairs.
        for seed in seeds:
            for method, arguments in methods_of(experiment, methods).items():
                key, command = f"{name}/{method}/{seed}", command_of(experiment, arguments, seed)
                if results.find(key, command):
                    continue
                try:
                    end = train(program, command, folder / "run")
                except RuntimeError as error:
                    failed[key] = str(error)
                    say(f"{key} {error}")
                    continue
                results.add(key, {"command": command, **end})
                say(f"{key}: " + (end["diverged"] if "diverged" in end else
                                  f"accuracy {end['test_accuracy']:.4f}, loss "
                                  f"{end['test_loss']:.4f}, {end['seconds']:.0f} s"))
    return failed


def score_of(experiment, entry):
    """Per cent for accuracy; nats per character for a text's loss."""
    return 100 * entry["test_accuracy"] if experiment["score"] == "accuracy" \
        else entry["test_loss"]


def compare(scores, dense):
    """Mean and standard error of the differences of runs with the same seed: {seed: score} each."""
    differences = [scores[seed] - dense[seed] for seed in scores if seed in dense]
    if not differences:
        return None
    if len(differences) == 1:
        return differences[0], None
    return statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5


def row(experiment, method, entries, dense, seeds):
    """One line of the table; `entries` and `dense` are {seed: result}."""
    ended = {seed: entry for seed, entry in entries.items() if "diverged" not in entry}
    scores = {seed: score_of(experiment, entry) for seed, entry in ended.items()}
    dense_scores = {seed: score_of(experiment, entry) for seed, entry in dense.items()
                    if "diverged" not in entry}
    digits = 2 if experiment["score"] == "accuracy" else 4
    cells = [method, *(f"{scores[seed]:.{digits}f}" if seed in scores else
                       "diverged" if seed in entries else "" for seed in seeds)]
    cells.append(f"{statistics.mean(scores.values()):.{digits}f}" if scores else "")
    difference = compare(scores, dense_scores) if method != DENSE else None
    if difference:
        mean, error = difference
        cells.append(f"{mean:+.{digits}f}" +
                     (f" ± {error:.{digits}f}" if error is not None else ""))
    else:
        cells.append("")
    some = next(iter(ended.values()), None)
    fewer = some["bytes_dense"] / some["bytes_wire"] if some and some["bytes_wire"] else None
    cells.append(f"{fewer:.1f}" if fewer else "")
    cells.append(f"{sum(entry['seconds'] for entry in ended.values()) / 3600:.2f}"
                 if ended else "")
    return "| " + " | ".join(cells) + " |"


def section(name, experiment, methods, seeds, results):
    methods = methods_of(experiment, methods)
    unit = "test accuracy, %" if experiment["score"] == "accuracy" \
        else "test loss, nats per character"
    found = {method: {seed: entry for seed in seeds if
                      (entry := results.find(f"{name}/{method}/{seed}",
                                             command_of(experiment, arguments, seed)))}
             for method, arguments in methods.items()}
    lines = [f"## {experiment['title']}", "",
             f"    build/thinwire train {experiment['arguments']} METHOD --seed SEED", "",
             f"{unit[0].upper()}{unit[1:]}.", "",
             "| gradients | " + " | ".join(f"seed {seed}" for seed in seeds) +
             " | mean | to dense | fewer bytes | hours |",
             "|---" * (len(seeds) + 5) + "|"]
    lines += [row(experiment, method, found[method], found.get(DENSE, {}), seeds)
              for method in methods]
    return "\n".join(lines) + "\n"


def document(experiments, methods, seeds, results):
    """One table per experiment, and what each method's words are."""
    text = """# Does it converge?

Written by `tests/convergence/table.py`. Runs of one seed begin with the same weights and see the
same samples in the same order. To dense: mean over seeds of the difference to the dense run of the
same seed, ± its standard error. All methods have the dense run's learning rate, schedule and number
of epochs. Compressors have their defaults; EControl's weight and
momentum for top-k were chosen on convnet, and the experiments of small steps are there because of
it. Fewer bytes: dense over sent, per rank and step. Hours: of training, all seeds; training beside
other work takes longer. Empty: not measured.

"""
    for (kind, experiment_set), method_set in zip(experiments.items(), methods):
        for name, experiment in experiment_set.items():
            text += section(name, experiment, method_set, seeds, results) + "\n"
        text += f"METHOD {kind}:\n\n" + "".join(
            f"    {method:<24} {arguments}\n" for method, arguments in method_set.items()) + "\n"
    return text.rstrip("\n") + "\n"


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--experiments", type=words, help="default: all")
    parser.add_argument("--methods", type=lambda text: text.split(";" if ";" in text else ","),
                        help="default: all; separated by ; where a name has a comma")
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")],
                        default=[1, 2, 3])
    parser.add_argument("--heterogeneous", action="store_true",
                        help="run the experiments with data dealt by label instead")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-runs", action="store_true", help="only write the table")
    parser.add_argument("--output", type=pathlib.Path, help="default: docs/convergence.md")
    options = parser.parse_args()
    if options.output is None:
        options.output = (options.build / "convergence/quick.md" if options.quick
                          else ROOT / "docs/convergence.md")
    return parser, options


def chosen(parser, what, names, known):
    for name in names or []:
        if name not in known:
            parser.error(f"no {what} '{name}'; give some of {', '.join(known)}")
    return {name: known[name] for name in names or known}


def main():
    parser, options = parse()
    plain, by_label = EXPERIMENTS, HETEROGENEOUS_EXPERIMENTS
    if options.quick:
        plain, by_label = dict(quick(plain)), dict(quick(by_label))
    experiments, methods = ((by_label, HETEROGENEOUS_METHODS) if options.heterogeneous
                            else (plain, METHODS))
    folder = options.build / "convergence"
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(folder / ("quick.json" if options.quick else "results.json"))
    failed = {}
    if not options.no_runs:
        failed = collect(options.build / "thinwire",
                         chosen(parser, "experiment", options.experiments, experiments),
                         chosen(parser, "method", options.methods, methods), options.seeds,
                         results, folder, lambda line: print(line, flush=True))
    options.output.write_text(document(
        {"of one distribution": plain, "of data dealt by label": by_label},
        [METHODS, HETEROGENEOUS_METHODS], options.seeds, results))
    print(f"wrote {options.output}")
    if failed:
        sys.exit(f"{len(failed)} runs failed")


if __name__ == "__main__":
    main()
