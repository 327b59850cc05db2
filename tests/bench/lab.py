"""What the comparisons through the network lab share."""

import os
import pathlib
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
NETLAB = HERE / "netlab"

# What torch.distributed and DDP import, of which libtorch needs nothing.
PEERS = ["typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock",
         "fsspec", "numpy"]


def run(launcher, ranks, rate, report, command, **variables):
    """One command through the lab: what it printed; CalledProcessError if it fails."""
    done = subprocess.run([NETLAB, "--ranks", str(ranks), "--rate", rate, "--launcher", launcher,
                           "--report", report, "--", *map(str, command)], check=True, text=True,
                          env={**os.environ, **variables}, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=1800)
    return done.stdout


def launcher_of(backend):
    """mpirun for MPI, and for auto, which chooses MPI under it; else torchrun's variables."""
    return "mpirun" if backend in ("auto", "mpi") else "each"


def prepare_peers(build):
    """Puts PyTorch's Python modules into BUILD/peers, once."""
    if all((build / "peers" / name).exists() or (build / "peers" / f"{name}.py").exists()
           for name in PEERS):
        return
    subprocess.run([python(build), "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade",
                    "--disable-pip-version-check", "--target", build / "peers", *PEERS],
                   check=True)


def python(build):
    return build / "venv/bin/python3"


def sent_bytes():
    """By this host so far, as its interfaces but loopback count."""
    total = 0
    with open("/proc/self/net/dev") as table:
        for line in table:
            device, _, counts = line.partition(":")
            if counts and device.strip() != "lo":
                total += int(counts.split()[8])
    return total
