"""``python -m benchmarks.study``: train, measure, costs, tables."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import study
from benchmarks.lpips_alex import Alex, find
from benchmarks.measure import machine
from benchmarks.study.measure import costs, costs_beside, measure_runs
from benchmarks.study.tables import render
from benchmarks.study.train import train_all
from benchmarks.study.variants import ITERATIONS, VARIANTS, WIDE, Budget
from slicescan.engine.pictures import read_pictures

WAY = {"cuda": "graph", "cpu": "eager"}
"""How costs are timed on a kind of device."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=study.__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    shared.add_argument("--iterations", type=int, default=ITERATIONS)
    shared.add_argument("--batch", type=int, help="patches in a batch, instead of the recipe's")
    shared.add_argument("--dim", type=int, help="width of the networks, instead of the model's")
    shared.add_argument("--patch", type=int, default=Budget.patch, help="side of a patch in pixels")
    shared.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    runs = argparse.ArgumentParser(add_help=False)
    runs.add_argument("--photos", type=Path, required=True, help="train: to learn from; measure: to measure on")
    runs.add_argument("--out", type=Path, required=True, help="folder of the runs")
    runs.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    training = commands.add_parser("train", parents=[shared, runs], help="train what has not ended yet")
    training.add_argument("--validation", type=Path)
    training.add_argument("--max-seconds", type=float)
    measuring = commands.add_parser("measure", parents=[shared, runs], help="measure the runs that have ended")
    measuring.add_argument("--lpips", help="folder with the weights of LPIPS; by default an installed package's")
    measuring.add_argument("--trained-on", help="device of the runs, for the record")
    costing = commands.add_parser("costs", parents=[shared], help="measure what steps and images cost here")
    costing.add_argument("--size", default="720x1280", help="of the image")
    printing = commands.add_parser("tables", help="print the tables")
    for command in (measuring, costing, printing):
        command.add_argument("--json", type=Path, required=True, help="file of figures")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.command == "tables":
        print(render(json.loads(options.json.read_text(encoding="utf-8"))))
        return 0
    budget = Budget(options.iterations, options.batch, options.dim, options.patch)
    if options.command == "train":
        waiting = train_all(
            options.out,
            options.photos,
            options.only,
            options.seeds,
            budget,
            validation=options.validation,
            device=options.device,
            max_seconds=options.max_seconds,
        )
        print(f"not ended yet: {', '.join(waiting)}" if waiting else "every run has ended")
        return 0
    if options.command == "costs":
        h, w = map(int, options.size.split("x"))
        for variant in options.only:
            found = {"costs": costs(variant, options.device, budget, (h, w))}
            found["costs_dim48"] = costs_beside(variant, options.device, WIDE, (h, w))
            result = _added(
                options.json, {"costs_about": {**machine(options.device), "way": WAY[options.device]}}, {variant: found}
            )
            print(f"{variant}: costs measured", flush=True)
        print(render(result))
        return 0
    file, photos = find(options.lpips), read_pictures(options.photos)
    lpips = Alex(file) if file else None
    measured = measure_runs(options.out, photos, options.seeds, budget, lpips=lpips, device=options.device)
    if not measured:
        print(f"{options.out}: no run of {options.iterations} steps has ended; run 'train' first", file=sys.stderr)
        return 1
    about = {
        **machine(options.device),
        "trained_on": options.trained_on,
        "iterations": options.iterations,
        "dim": options.dim,
        "patch": options.patch,
        "seeds": options.seeds,
        "photographs": len(photos),
    }
    print(render(_added(options.json, about, measured)))
    return 0


def _added(path: Path, about: dict[str, Any], variants: dict[str, Any]) -> dict[str, Any]:
    """Add figures to a file, which is written whole or not at all; returns all that it holds."""
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    result |= about
    known = result.setdefault("variants", {})
    for name, figures in variants.items():
        known[name] = known.get(name, {}) | figures
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)
    return result


if __name__ == "__main__":
    sys.exit(main())
