#!/usr/bin/env python3
"""extract.py FROM TO: from recorded runs of PyTorch's powerSGD_hook, what power_sgd_test reads.

Left out: the averages of compressed matrices, which are P Q^T of the recorded factors to 1.4e-7 of
the largest element, and what no test reads.
"""
import json
import pathlib
import sys

source, target = map(pathlib.Path, sys.argv[1:])
for ranks in 1, 2:
    for rank in 1, 2, 4:
        name = f"psgd_n{ranks}_r{rank}.json"
        run = json.loads((source / name).read_text())
        dense = [str(i) for i, shape in enumerate(run["shapes"]) if len(shape) < 2]
        for variant in run["variants"].values():
            for unread in "bucket_order", "factor_order", "dense_calls":
                variant.pop(unread)
            for step in variant["full"].values():
                step["avg"] = {i: step["avg"][i] for i in dense}
        (target / name).write_text(json.dumps(run))
for name in "q_init.json", "extras.json", "local_error.json":
    (target / name).write_text(json.dumps(json.loads((source / name).read_text())))
