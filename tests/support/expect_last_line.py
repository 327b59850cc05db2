"""Runs a command that must succeed and whose last line must match: expect_last_line.py REGEX COMMAND..."""

import re
import subprocess
import sys

result = subprocess.run(sys.argv[2:], text=True, stdout=subprocess.PIPE, check=False)
print(result.stdout, end="")
last = (result.stdout.splitlines() or [""])[-1]
if result.returncode != 0:
    sys.exit(f"exit code {result.returncode}")
if not re.fullmatch(sys.argv[1], last):
    sys.exit(f"the last line is not: {sys.argv[1]}")
