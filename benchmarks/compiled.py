"""XYScanNet under ``torch.compile`` beside itself in eager mode, as PyTorch sets itself up.

``python benchmarks/compiled.py [--dim 144] [--size 720x1280 256x256] [--json FILE]``

For every size the whole network is compiled into one graph, for that size alone, and restores an image in bf16
autocast. Times of a step are medians in ms; those of the kernels are sums under PyTorch's profiler. Errors are the RMS
of what both add to the image, relative to float32. Nothing else is chosen, not even cuDNN's fastest kernels.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, installed or not

from benchmarks.kernels import recorded, summed
from benchmarks.measure import interleaved, machine
from benchmarks.network import difference, image, precision
from slicescan.models.xyscannet import XYScanNet

WAYS = ("eager", "compiled")


@torch.no_grad()
def row(
    network: nn.Module, what: str, size: Sequence[int], device: str, backend: str = "inductor", rounds: int = 10
) -> dict[str, Any]:
    """Both ways on one size: errors, times, and how long compilation took."""
    x = image(1, 3, *size, device=device)
    exact = network(x) - x
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend=backend)

    def runs(module: Any) -> Any:
        def run() -> Tensor:
            with precision("bf16", device):
                return module(x)

        return run

    steps = dict(zip(WAYS, map(runs, (network, compiled)), strict=True))
    started = time.perf_counter()
    errors = {way: difference(step() - x, exact) for way, step in reversed(steps.items())}
    found: dict[str, Any] = {"what": what, "shape": list(x.shape), "dtype": "bf16"}
    found["compile_s"] = time.perf_counter() - started
    for way, step in steps.items():
        found[f"{way}_ms"] = interleaved({way: step}, device, rounds=rounds)[way]
        found[f"{way}_kernels_ms"] = summed(recorded(step, device))["device_ms"]
        found[f"{way}_error"] = errors[way]
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=144, help="width of XYScanNet")
    parser.add_argument("--size", nargs="+", default=["720x1280", "256x256"], help="height x width of the image")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(words)
    torch.manual_seed(0)
    network = XYScanNet(options.dim, fusion_gate="tensor").to(options.device).eval()
    rows = []
    for size in options.size:
        h, w = map(int, size.split("x"))
        rows.append(row(network, f"XYScanNet, dim {options.dim}", (h, w), options.device, options.backend))
        print(
            ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in rows[-1].items()
            )
        )
        if options.json:
            fresh = options.json.with_name(options.json.name + ".new")
            fresh.write_text(json.dumps({**machine(options.device), "rows": rows}, indent=1) + "\n", encoding="utf-8")
            os.replace(fresh, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
