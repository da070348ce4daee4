"""Fail when a Python file passes 400 lines: it usually holds two ideas."""

import pathlib
import subprocess
import sys

LIMIT = 400

listed = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout.split()
lengths = {name: len(pathlib.Path(name).read_text(encoding="utf-8").splitlines()) for name in listed}
too_long = {name: lines for name, lines in lengths.items() if lines > LIMIT}
for name, lines in sorted(too_long.items()):
    print(f"{name}: {lines} lines, at most {LIMIT}")
sys.exit(bool(too_long))
