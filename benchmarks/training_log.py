r"""Make a file of results from the logs of training runs: the means of every few hundred steps, and every measurement.

    python benchmarks/training_log.py --device "NVIDIA H200" --torch 2.11.0 \
        --run xyscannet_tiny runs/tiny/log.jsonl "the first weights" \
        --run nafnet_tiny runs/nafnet_tiny/log.jsonl "random weights" \
        --json benchmarks/results/training_xyscannet_tiny.json

A run that was stopped and went on has the sum of the times of its pieces.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, installed or not

from slicescan.checkpoint.write import replacing
from slicescan.engine.config import find_recipe, read_recipe

FIGURES = ("loss", "seconds_per_step")


def run(recipe: str, log: Path, start: str, every: int) -> dict[str, Any]:
    """A run in short.

    Args:
        recipe: Name or path of its recipe.
        log: Its ``log.jsonl``.
        start: The weights that it began with, in words.
        every: Steps that become one point, the mean over their lines.
    """
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    points: dict[int, list[dict[str, float]]] = {}
    for line in lines:
        if "loss" in line:
            points.setdefault(-(-line["step"] // every), []).append(line)
    means = [
        {"step": group[-1]["step"]} | {key: round(sum(line[key] for line in group) / len(group), 6) for key in FIGURES}
        for group in points.values()
    ]
    read, ends = read_recipe(find_recipe(recipe)), [line for line in lines if "wall_seconds" in line]
    return {
        "run": Path(recipe).stem,
        "start": start,
        "steps": ends[-1]["step"],
        "batch": read.data.batch,
        "patch": read.data.patch,
        "amp": read.amp,
        "seconds": round(sum(line["wall_seconds"] for line in ends), 1),
        "points": means,
        "measured": [
            {"step": line["step"], "gain_db": round(line["gain_db"], 3)} for line in lines if "gain_db" in line
        ],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", required=True, nargs=3, metavar=("RECIPE", "LOG", "START"))
    parser.add_argument("--device", required=True, help="each run's")
    parser.add_argument("--torch", required=True, help="version of PyTorch")
    parser.add_argument("--every", type=int, default=200, help="steps that become one point")
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    options = parser.parse_args(argv)
    runs = [run(recipe, Path(log), start, options.every) for recipe, log, start in options.run]
    text = json.dumps({"device": options.device, "torch": options.torch, "runs": runs}, indent=1)
    text = re.sub(r"\{[^{}\[\]]+\}", lambda point: " ".join(point[0].split()), text)  # a point a line
    with replacing(options.json) as fresh:
        fresh.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
