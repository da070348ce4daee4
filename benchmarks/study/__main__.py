"""``python -m benchmarks.study``: train, measure, tables."""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from benchmarks import study
from benchmarks.lpips_alex import Alex, find
from benchmarks.measure import machine
from benchmarks.study.measure import costs, costs_beside, measure_runs
from benchmarks.study.tables import render
from benchmarks.study.train import train_all
from benchmarks.study.variants import ITERATIONS, VARIANTS, WIDE, Budget
from slicescan.engine.pictures import read_pictures


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=study.__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--photos", type=Path, required=True, help="train: to learn from; measure: to measure on")
    shared.add_argument("--out", type=Path, required=True, help="folder of the runs")
    shared.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    shared.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    shared.add_argument("--iterations", type=int, default=ITERATIONS)
    shared.add_argument("--batch", type=int, help="patches in a batch, instead of the recipe's")
    shared.add_argument("--dim", type=int, help="width of the networks, instead of the model's")
    shared.add_argument("--patch", type=int, default=Budget.patch, help="side of a patch in pixels")
    shared.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    training = commands.add_parser("train", parents=[shared], help="train what has not ended yet")
    training.add_argument("--validation", type=Path)
    training.add_argument("--max-seconds", type=float)
    measuring = commands.add_parser("measure", parents=[shared], help="measure the runs that have ended")
    measuring.add_argument("--json", type=Path, required=True)
    measuring.add_argument("--lpips", help="folder with the weights of LPIPS; by default an installed package's")
    measuring.add_argument("--size", default="720x1280", help="of the image whose cost is measured; none: no costs")
    printing = commands.add_parser("tables", help="print the tables")
    printing.add_argument("--json", type=Path, required=True)
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
    file, photos = find(options.lpips), read_pictures(options.photos)
    found = measure_runs(
        options.out,
        photos,
        options.seeds,
        budget,
        lpips=Alex(file) if file else None,
        device=options.device,
    )
    if not found:
        print(f"{options.out}: no run of {options.iterations} steps has ended; run 'train' first", file=sys.stderr)
        return 1
    if options.size != "none":
        h, w = map(int, options.size.split("x"))
        for variant in found:
            found[variant]["costs"] = costs(variant, options.device, budget, (h, w))
            found[variant]["costs_dim48"] = costs_beside(variant, options.device, WIDE, (h, w))
            print(f"{variant}: costs measured", flush=True)
    result = {
        "about": machine(options.device),
        "iterations": options.iterations,
        "dim": options.dim,
        "patch": options.patch,
        "seeds": options.seeds,
        "photographs": len(photos),
        "variants": found,
    }
    fresh = options.json.with_name(options.json.name + ".new")
    fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, options.json)
    print(render(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
