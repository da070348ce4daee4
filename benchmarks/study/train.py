"""Train every variant with every seed, one after the other, each in a folder of its own."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.study.variants import Budget, recipe
from slicescan.engine.train import train


def folder(out: Path, variant: str, seed: int) -> Path:
    """Where a run lies."""
    return out / f"{variant}_{seed}"


def ended(run: Path, iterations: int) -> bool:
    """Whether the log of a run says that it came to its end."""
    log = run / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    try:
        last = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return False
    return last.get("of") == iterations == last.get("step")


def train_all(
    out: Path,
    photos: Path,
    variants: Sequence[str],
    seeds: Sequence[int],
    budget: Budget,
    *,
    validation: Path | None = None,
    device: str | None = None,
    max_seconds: float | None = None,
) -> list[str]:
    """Train what has not ended yet; the names of the runs that still have not, once the time is up."""
    start, waiting = time.monotonic(), []
    for seed in seeds:
        for variant in variants:
            run = folder(out, variant, seed)
            if ended(run, budget.iterations):
                continue
            left = None if max_seconds is None else max_seconds - (time.monotonic() - start)
            if left is not None and left <= 0:
                waiting.append(run.name)
                continue
            print(f"{run.name}: {budget.iterations} steps", flush=True)
            chosen = recipe(variant, seed, budget)
            run.mkdir(parents=True, exist_ok=True)
            (run / "recipe.json").write_text(json.dumps(asdict(chosen), indent=1) + "\n", encoding="utf-8")
            train(chosen, out=run, photos=photos, validation=validation, device=device, max_seconds=left)
            if not ended(run, budget.iterations):
                waiting.append(run.name)
    return waiting
