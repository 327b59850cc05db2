#!/usr/bin/env python3
"""Prints a table of finished runs: compare_runs.py RUN_FOLDER...

Reads the last line of each RUN_FOLDER/metrics.jsonl.
"""
import json
import pathlib
import sys


def main(folders):
    rows = [("run", "accuracy", "samples/s", "bytes/step", "ratio", "metrics", "checkpoint")]
    for folder in map(pathlib.Path, folders):
        metrics = folder / "metrics.jsonl"
        end = json.loads(metrics.read_text().splitlines()[-1])
        if end.get("event") != "end":
            sys.exit(f"{metrics}: the run has not ended")
        wire = end["bytes_wire"]
        rows.append((
            folder.name,
            f"{100 * end['test_accuracy']:.2f} %",
            f"{end['samples_per_second']:,.0f}",
            f"{wire:,.0f}",
            f"{end['bytes_dense'] / wire:.1f}x" if wire else "-",
            str(metrics),
            str(end["checkpoint"]),
        ))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


if __name__ == "__main__":
    main(sys.argv[1:])
