"""Figures of the runs that have ended: quality, costs on this machine, receptive field."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import slicescan
from benchmarks.lpips_alex import Alex
from benchmarks.measure import captured, memory, times
from benchmarks.network import check_image, image, pair, prepared
from benchmarks.quality import restorer
from benchmarks.study.train import ended, folder
from benchmarks.study.variants import MODEL, VARIANTS, Budget, recipe
from slicescan.engine.erf import effective_receptive_field
from slicescan.engine.metrics import psnr
from slicescan.engine.metrics.niqe import niqe
from slicescan.engine.quality import blurred_crop
from slicescan.engine.run import Run

Photos = Sequence[tuple[str, Tensor]]


def measure_runs(
    out: Path, photos: Photos, seeds: Sequence[int], budget: Budget, *, lpips: Alex | None, device: str
) -> dict[str, Any]:
    """``{variant: {"runs": …, "params": …, "receptive_field": …}}`` of every variant with a run that has ended."""
    found: dict[str, Any] = {}
    for variant in VARIANTS:
        arguments = budget.arguments(variant)
        runs, field = [], None
        for seed in seeds:
            run = folder(out, variant, seed)
            if not ended(run, budget.iterations):
                continue
            model = slicescan.create_model(MODEL, checkpoint_path=run / f"{MODEL}.safetensors", **arguments).eval()
            runs.append({"seed": seed, **quality(restorer(model, device), photos, lpips), **_log(run)})
            if field is None:
                field = effective_receptive_field(model.cpu(), size=128, images=2).summary()
            print(f"{run.name}: {runs[-1]['psnr']:.2f} dB, NIQE {runs[-1]['niqe']:.2f}", flush=True)
        if runs:
            params = sum(p.numel() for p in slicescan.create_model(MODEL, **arguments).parameters())
            found[variant] = {"runs": runs, "params": params, "receptive_field": field}
    return found


def quality(restore: Callable[[Tensor], Tensor], photos: Photos, lpips: Alex | None) -> dict[str, float | None]:
    """Means over the photographs, each blurred with its index as seed."""
    rows = []
    for seed, (_, photo) in enumerate(photos):
        blurred, sharp = blurred_crop(photo, seed)
        restored = restore(blurred)
        rows.append((psnr(restored, sharp), niqe(restored), lpips(restored, sharp) if lpips else None))
    means = [None if None in column else sum(column) / len(column) for column in zip(*rows, strict=True)]
    return dict(zip(("psnr", "niqe", "lpips"), means, strict=True))


def costs(variant: str, device: str, budget: Budget, size: tuple[int, int]) -> dict[str, float]:
    """Milliseconds and bytes of one training step and of one image, by the recipe, with nothing beside.

    On a GPU the times are those of CUDA graphs, which training replays: networks as narrow as these wait for the host.
    """
    chosen = recipe(variant, 0, budget)
    run = Run(chosen, torch.device(device))
    blurred, sharp = (torch.rand(chosen.data.batch, 3, budget.patch, budget.patch, device=device) for _ in range(2))
    image = torch.rand(1, 3, *size, device=device)
    model = run.averaged().to(device)

    @torch.inference_mode()
    def infer() -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=chosen.amp == "bf16"):
            return model(image)

    def step() -> None:
        run.update(blurred, sharp)

    held = {"train_bytes": memory(step, device), "infer_bytes": memory(infer, device)}
    timed: dict[str, Callable[[], Any]] = {"train_ms": step, "infer_ms": infer}
    if device == "cuda":
        replay = run.captured()
        timed = {"train_ms": partial(replay, blurred, sharp, 1.0), "infer_ms": captured(infer)}
    return {**times(timed, device, rounds=3), **held}


def costs_beside(variant: str, device: str, budget: Budget, size: tuple[int, int]) -> dict[str, Any]:
    """Milliseconds and bytes of forward and backward passes and of one image: our network and the conventional one.

    Both have the same weights, and must agree before they are timed.
    """
    arguments = budget.arguments(variant)
    amp = recipe(variant, 0, budget).amp if device == "cuda" else "none"
    batch = budget.batch or recipe(variant, 0, budget).data.batch
    modules, peer = pair(
        arguments.get("dim", 24),
        device,
        scanners=arguments.get("scanners", ("intra", "inter")),
        fusion=arguments.get("fusion", "klff"),
    )
    found: dict[str, Any] = {"peer": peer, "error": check_image(modules, 1, 3, 32, 48, device=device)}
    kind = "bf16" if amp == "bf16" else "fp32"
    for name, module in modules.items():
        found[name] = {}
        for key, shape in (("train", (batch, 3, budget.patch, budget.patch)), ("infer", (1, 3, *size))):
            x, weights = image(*shape, device=device), sum(p.nbytes for p in module.parameters())
            run, _ = prepared(module, name, "eager", x, kind, key == "train")
            found[name][f"{key}_bytes"] = memory(run, device) + weights
            if device == "cuda":
                run, _ = prepared(module, name, "graph", x, kind, key == "train")
            found[name][f"{key}_ms"] = times({key: run}, device, rounds=3)[key]
            del run
    return found


def _log(run: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    steps = [line["seconds_per_step"] * 1e3 for line in lines if "seconds_per_step" in line]
    return {
        "last_loss": losses[-1] if losses else None,
        "step_ms": median(steps) if steps else None,  # while it was trained, by the recipe, batches included
        "skipped": sum(line.get("skipped", 0) for line in lines),
    }
