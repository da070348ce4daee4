"""What real loading costs a step, and how long a run over a folder of many pictures takes to begin.

    python benchmarks/loading.py --device cuda --amp bf16 --json benchmarks/results/loading_gpu.json      # on a GPU
    python benchmarks/loading.py --steps 0 --json benchmarks/results/loading_start.json               # the start only

A step of ``xyscannet`` on 8 patches of 256x256, cut from PNG pairs of 1280x720 that are decoded anew each time by 8
threads, against the same step on batches that lie on the device; medians of steps, in turn. On a GPU a step is a CUDA
graph, as in the recipes, which leaves loading the least time; ``--eager`` starts kernel by kernel. The start is the
time from the folder's name to the first batch, with 10,000 small photographs, and with as many pairs.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, installed or not

from benchmarks.measure import machine
from slicescan.checkpoint.write import replacing
from slicescan.commands.options import height_and_width
from slicescan.engine.ahead import Batch, ahead
from slicescan.engine.config import DataSection, ModelSection, Recipe
from slicescan.engine.run import Run
from slicescan.engine.sources import open_source


def write_pairs(folder: Path, count: int, h: int, w: int) -> float:
    """Pairs of PNGs with the detail and the noise of photographs; returns the mean size of a file in MB."""
    for side in ("blur", "sharp"):
        (folder / side).mkdir(parents=True)

    def write(number: int) -> float:
        draw = np.random.default_rng(number)
        rough = Image.fromarray(draw.integers(0, 256, (max(1, h // 8), max(1, w // 8), 3), dtype=np.uint8))
        smooth = np.array(rough.resize((w, h), Image.Resampling.BICUBIC), np.float32)
        noisy = (smooth + 1.5 * draw.standard_normal(smooth.shape, np.float32)).clip(0, 255).astype(np.uint8)
        file = folder / ("blur", "sharp")[number % 2] / f"{number // 2:04}.png"
        Image.fromarray(noisy).save(file)
        return file.stat().st_size / 1e6

    with ThreadPoolExecutor() as pool:
        return statistics.mean(pool.map(write, range(2 * count)))


def step_times(recipe: Recipe, device: torch.device, steps: int, rounds: int = 3) -> dict[str, Any]:
    """Median ms of a step with batches that lie on the device and with batches that are loaded, and their ratio."""
    run, source = Run(recipe, device), open_source(recipe, device)
    step = run.captured() if recipe.cuda_graph else run.update
    lying = [source.batch(number) for number in range(2)]
    for batch in lying:  # what is compiled or tuned at first use
        step(*batch, 1.0)
    times: dict[str, list[float]] = {"cached": [], "loaded": []}
    for number in range(rounds):
        first = number * steps
        times["cached"] += _timed(step, islice(cycle(lying), steps), device)
        loaded = _timed(step, ahead(source, first, first + steps + 1), device)
        times["loaded"] += loaded[1:]  # the first waits in any case
    median = {key: statistics.median(values) for key, values in times.items()}
    mean = {f"{key}_mean": statistics.mean(values) for key, values in times.items()}
    return median | mean | {"ratio": mean["loaded_mean"] / mean["cached_mean"], "steps": steps * rounds}


def _timed(step: Callable[..., None], batches: Iterator[Batch], device: torch.device) -> list[float]:
    """Milliseconds of every step, waiting for its batch included."""
    found, before = [], time.perf_counter()
    for blurred, sharp in batches:
        step(blurred, sharp, 1.0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        found.append((now - before) * 1e3)
        before = now
    return found


def start_times(root: Path, count: int, side: int = 64) -> dict[str, float]:
    """Seconds from a folder's name to the first batch of 8, for photographs and for pairs."""
    small = root / "small.png"
    root.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(small)
    content = small.read_bytes()
    for folder in ("photos", "pairs/blur", "pairs/sharp"):
        (root / folder).mkdir(parents=True)
        for index in range(count):
            (root / folder / f"{index:06}.png").write_bytes(content)
    found = {}
    for kind in ("photos", "pairs"):
        before = time.perf_counter()
        data = DataSection(patch=16, batch=8, **{kind: str(root / kind)})
        open_source(Recipe(ModelSection("xyscannet"), data), torch.device("cpu")).batch(0)
        found[kind] = time.perf_counter() - before
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=height_and_width, default=(720, 1280), metavar="HxW")
    parser.add_argument("--pairs", type=int, default=32, help="pairs on disk")
    parser.add_argument("--model", default="xyscannet")
    parser.add_argument("--arguments", type=json.loads, default={}, help="of the model, as JSON")
    parser.add_argument("--patch", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="in each of three rounds; 0 leaves steps out")
    parser.add_argument("--amp", default="none", choices=["none", "bf16", "fp16"])
    parser.add_argument("--eager", action="store_true", help="without a CUDA graph")
    parser.add_argument("--start", type=int, default=10_000, help="pictures of the large folder; 0 leaves it out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(argv)

    result: dict[str, Any] = machine(torch.device(options.device).type)
    with tempfile.TemporaryDirectory() as root:
        if options.steps:
            h, w = options.size
            megabytes = write_pairs(Path(root) / "pngs", options.pairs, h, w)
            shape = {"patch": options.patch, "batch": options.batch, "workers": options.workers}
            data = DataSection(pairs=str(Path(root) / "pngs"), memory=0.0, **shape)
            graph = options.device.startswith("cuda") and not options.eager
            recipe = Recipe(ModelSection(options.model, options.arguments), data, amp=options.amp, cuda_graph=graph)
            about = {
                "model": options.model,
                "amp": options.amp,
                "graph": graph,
                "png": f"{w}x{h}",
                "png_mb": megabytes,
                **shape,
            }
            result["step_ms"] = [about | step_times(recipe, torch.device(options.device), options.steps)]
        if options.start:
            seconds = start_times(Path(root) / "many", options.start)
            result["start_seconds"] = [{"pictures": options.start, "of": kind, "s": s} for kind, s in seconds.items()]
    print(json.dumps(result, indent=1))
    if options.json:
        with replacing(options.json) as fresh:
            fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
