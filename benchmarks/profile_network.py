"""Where a GPU's time goes in the networks of ``benchmarks/network.py``, by kind of kernel.

``python benchmarks/profile_network.py [--dim 144 72] [--dtype bf16 fp32] [--beside mambair_unet ...] [--json FILE]``

XYScanNet restores a large and a small image and computes gradients of a batch, eagerly: one step of each under
PyTorch's profiler after a few without it. The device's time is the sum of its kernels; the step itself is timed without
the profiler, as a median, and what it takes longer than its kernels the device waits for the host. ``--beside`` adds
other networks of the package. The weights, the precision and the inputs are those of the table of networks.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, installed or not

from benchmarks.cases import NETWORK_GPU, Sizes
from benchmarks.kernels import recorded, summed
from benchmarks.measure import interleaved, machine
from benchmarks.network import TOLERANCE, Row, image, pair, prepared, store
from slicescan import create_model

DIMS = (144, 72)


def row(what: str, module: nn.Module, shape: Sequence[int], kind: str, train: bool, device: str) -> Row:
    """One step of a network: its time, and that of its kernels."""
    run, _ = prepared(module, "ours", "eager", image(*shape, device=device), kind, train)
    launches = recorded(run, device)
    about = {"part": "profile", "what": what, "shape": list(shape), "dtype": kind}
    timed = {"pass": "forward+backward" if train else "forward", "eager_ms": interleaved({"": run}, device)[""]}
    return {**about, **timed, **summed(launches)}


def rows(sizes: Sizes, options: argparse.Namespace) -> Iterator[Row]:
    """XYScanNet of each width, then the networks beside it."""
    for dim in options.dim:
        ours = pair(dim, options.device, sizes.blocks)[0]["ours"]
        for (train, shape), kind in ((case, kind) for case in sizes.cases for kind in options.dtype):
            yield row(f"dim {dim}", ours, shape, kind, train, options.device)
        del ours
    for name in options.beside:
        torch.manual_seed(0)
        model = create_model(name).to(options.device).eval()
        for (train, shape), kind in ((case, kind) for case in sizes.model_cases for kind in options.dtype):
            yield row(name, model, shape, kind, train, options.device)


def text(row: Row) -> str:
    """A row as a table for a terminal."""
    about = ", ".join([row["what"], "x".join(map(str, row["shape"])), row["dtype"], row["pass"]])
    lines = [f"{about}: {row['device_ms']:.2f} ms of {row['launches']} launches, a step {row['eager_ms']:.2f} ms"]
    costs = [*row["kinds"].items(), *((f"  {kernel['name']}", kernel) for kernel in row["longest"])]
    for name, cost in costs:
        cut = name if len(name) <= 64 else name[:63] + "…"
        lines.append(f"  {cut:<64} {cost['ms']:9.3f} ms {cost['share']:6.1%} {cost['launches']:6}")
    return "\n".join(lines)


def options_from(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, nargs="*", default=list(DIMS), help="widths of XYScanNet; none: without it")
    parser.add_argument("--dtype", choices=list(TOLERANCE), nargs="+", default=list(TOLERANCE))
    parser.add_argument("--beside", "--model", nargs="+", default=[], metavar="NAME", help="other networks as well")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args(words, argparse.Namespace(device="cuda"))


def main(words: Sequence[str] | None = None) -> int:
    options = options_from(words)
    if not torch.cuda.is_available():
        print("profile_network.py wants a GPU, and PyTorch finds none here", file=sys.stderr)
        return 1
    torch.backends.cudnn.benchmark = True
    about = {**machine("cuda"), "units": {"ms": "sum of kernels", "eager_ms": "median without the profiler"}}
    print(about["device"], about["torch"])
    for found in rows(NETWORK_GPU, options):
        print(f"\n{text(found)}", flush=True)
        if options.json:
            store(options.json, about, [found])
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
