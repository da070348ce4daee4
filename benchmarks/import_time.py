"""How much ``import slicescan`` adds to ``import torch``: medians of fresh processes, run in turn.

``python benchmarks/import_time.py [--runs 7] [--limit 1.15] [--json FILE]`` prints both medians and their ratio.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time


def seconds(statement: str) -> float:
    """Wall-clock time of one fresh Python process that runs ``statement``."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--limit", type=float, default=1.15, help="largest accepted ratio")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    statements = {"torch": "import torch", "slicescan": "import slicescan"}
    for statement in statements.values():  # first imports fill the page cache and write the byte code
        seconds(statement)
    times: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(options.runs):
        for name, statement in statements.items():
            times[name].append(seconds(statement))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["slicescan"] / medians["torch"]
    print(f"import torch {medians['torch']:.2f} s, import slicescan {medians['slicescan']:.2f} s, ratio {ratio:.3f}")
    if options.json:
        figures = {"machine": platform.machine(), "python": platform.python_version(), "seconds": times, "ratio": ratio}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)
    return int(ratio > options.limit)


if __name__ == "__main__":
    sys.exit(main())
