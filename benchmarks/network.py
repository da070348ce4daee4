"""The table of the networks: ours beside the conventional composition, with the same weights, in one run.

``python benchmarks/network.py [--part network block stream ss2d models] [--dim 144] [--dtype bf16] [--way eager]
[--rounds 9] [--json FILE]``

Before anything is timed, both compositions must give the same image and gradients. Times are medians in ms, on a CPU
of rounds in which all take turns; memory is the peak that tensors hold, weights included, in GiB. float32 has
convolutions in TF32, as PyTorch does by itself; bf16 is autocast with float32 weights. On a CPU the table is small.
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, installed or not

from benchmarks import conventional
from benchmarks.cases import NETWORK_CPU, NETWORK_GPU, SS2D_CPU, SS2D_GPU, Sizes, published
from benchmarks.measure import GIB, captured, interleaved, machine, memory
from benchmarks.peers import compiled_scan, materialised
from slicescan import create_model
from slicescan.engine.stream import stream
from slicescan.layers import SS2D
from slicescan.models.xyscannet import XYScanNet

PARTS = ("network", "block", "stream", "ss2d", "models")
WAYS = ("eager", "compile", "graph")
EXACT = 1e-4  # relative RMS in float32 without TF32: two ways to compute the same
TOLERANCE = {"fp32": 2e-2, "bf16": 1e-1}  # of the timed ones; the difference itself is in the table
Row = dict[str, Any]


def stirred(module: nn.Module) -> nn.Module:
    """Move every parameter away from its initialisation, which hides mistakes behind small numbers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator).to(p)
            p.add_((0.02 + 0.1 * p.abs().mean()) * noise)
    return module


def pair(
    dim: int,
    device: str,
    blocks: Sequence[int] = (3, 3, 6),
    scanners: Sequence[Any] = ("intra", "inter"),
    fusion: Any = "klff",
) -> tuple[dict[str, nn.Module], str]:
    """Both networks with the same weights, and what the conventional one scans with."""
    name, mamba = conventional.mamba_of(device)
    torch.manual_seed(0)
    ours = XYScanNet(dim, blocks=blocks, scanners=scanners, fusion=fusion, fusion_gate="tensor")  # the other's gate
    theirs = conventional.Network(dim, mamba, blocks, scanners, fusion, plain_scan(device))
    theirs.load_state_dict(stirred(ours).state_dict())
    return {"ours": ours.to(device).eval(), "conventional": theirs.to(device).eval()}, name


def plain_scan(device: str) -> Callable[..., Tensor]:
    """What stacked sequences are scanned with on a device: mamba-ssm, or the recurrence written with tensors."""
    compiled = compiled_scan() if device == "cuda" else None
    return partial(compiled, delta_softplus=True) if compiled else materialised


def image(*shape: int, device: str) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)


def difference(one: Tensor, two: Tensor) -> float:
    """RMS of the difference over that of the second."""
    return ((one.double() - two.double()).norm() / two.double().norm()).item()


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The result, and the gradients of all parameters for a gradient of ones."""
    y = module(x)
    return y.detach(), *torch.autograd.grad(y, list(module.parameters()), torch.ones_like(y))


def check(pair: dict[str, nn.Module], *shape: int, device: str) -> float:
    """Stop unless two modules with equal state dicts agree, in the result and the gradient of every parameter."""
    x = image(*shape, device=device).to(next(pair["ours"].parameters()))
    names = [[name for name, _ in module.named_parameters()] for module in pair.values()]
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = [
            dict(zip(["result", *own], gradients(m, x), strict=True))
            for m, own in zip(pair.values(), names, strict=True)
        ]
    worst = max((difference(found[0][name], found[1][name]), name) for name in found[1])
    if not worst[0] <= EXACT and x.dtype == torch.float32:
        worst = judged(pair["ours"], x, *found)
    if not worst[0] <= EXACT:
        raise SystemExit(f"{' and '.join(pair)} disagree: {worst[1]}, relative error {worst[0]:.1e}")
    return worst[0]


def judged(ours: nn.Module, x: Tensor, mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, str]:
    """The largest error against float64 that is not float32's own, and what has it.

    Where float32 loses more than two compositions may differ by, ours may err twice as much as the other; and the
    other, which is not ours to judge, ten times what they may differ by.
    """
    exact_module = copy.deepcopy(ours).double()
    names = ["result", *[name for name, _ in exact_module.named_parameters()]]
    exact = dict(zip(names, gradients(exact_module, x.double()), strict=True))
    errors = {name: (difference(mine[name], exact[name]), difference(theirs[name], exact[name])) for name in names}
    allowed = {name: own <= 2 * other and other <= 10 * EXACT for name, (own, other) in errors.items()}
    return max((min(max(pair), EXACT if allowed[name] else 1.0), name) for name, pair in errors.items())


@torch.inference_mode()
def check_image(pair: dict[str, nn.Module], *shape: int, device: str) -> float:
    """Stop unless two networks with equal weights restore the same image."""
    x = image(*shape, device=device)
    with torch.backends.cudnn.flags(allow_tf32=False):
        ours, theirs = (network(x) - x for network in pair.values())
    error = difference(ours, theirs)
    if not error <= EXACT:
        raise SystemExit(f"{' and '.join(pair)} restore other images: relative error {error:.1e}")
    return error


def precision(kind: str, device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16) if kind == "bf16" else nullcontext()


def runs_of(module: nn.Module, x: Tensor, kind: str, train: bool) -> Callable[[], Any]:
    """What is timed: a forward pass, or one with the gradients of all parameters."""

    @torch.no_grad()
    def forward() -> Tensor:
        with precision(kind, x.device.type):
            return module(x)

    def both() -> tuple[Tensor, ...]:
        with precision(kind, x.device.type):
            y = module(x)
        return y.detach(), *torch.autograd.grad(y, list(module.parameters()), torch.ones_like(y))

    return both if train else forward


def compare(
    modules: dict[str, nn.Module],
    shape: Sequence[int],
    kind: str,
    train: bool,
    device: str,
    ways: Sequence[str] = ("eager",),
    rounds: int = 5,
) -> Row:
    """Time and memory of modules on one input, in every way that works; the reason of one that does not.

    On a CPU all take turns; on a GPU each is alone, because graphs keep their memory.
    """
    x = image(*shape, device=device)
    found: Row = {"shape": list(shape), "dtype": kind, "pass": "forward+backward" if train else "forward", "ways": {}}
    keys = [(name, way) for name in modules for way in ways]
    first: Tensor | None = None
    found["difference"] = 0.0
    for group in [[key] for key in keys] if device == "cuda" else [keys]:
        runs: dict[str, Callable[[], Any]] = {}
        for name, way in group:
            key = f"{name}, {way}"
            try:
                runs[key], result = prepared(modules[name], name, way, x, kind, train)
            except Exception as error:  # whatever a compiler or a capture raises
                found["ways"][key] = {"fails": reason(error)}
                continue
            first = result if first is None else first
            found["difference"] = max(found["difference"], difference(result, first))
        try:
            for key, ms in interleaved(runs, device, rounds=rounds).items():
                weights = sum(p.nbytes for p in modules[key.partition(",")[0]].parameters())
                held = None if "graph" in key else (memory(runs[key], device) + weights) / GIB  # it has its own pool
                found["ways"][key] = {"ms": ms, "gib": held}
        except torch.OutOfMemoryError as error:  # what fitted once need not fit again beside what is cached
            found["ways"] |= {key: {"fails": reason(error)} for key in runs if key not in found["ways"]}
        del runs
        if device == "cuda":
            torch.cuda.empty_cache()
    if not found["difference"] <= TOLERANCE[kind]:
        raise SystemExit(f"{list(found['ways'])} disagree: {found['difference']:.1e}")
    return found


def reason(error: Exception) -> str:
    """What happened, in a line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def prepared(
    module: nn.Module, name: str, way: str, x: Tensor, kind: str, train: bool
) -> tuple[Callable[[], Any], Tensor]:
    """What is timed of a module in one way, and its result."""
    given = x.contiguous(memory_format=torch.channels_last) if name == "ours" else x
    if way == "compile":
        torch.compiler.reset()
        module = torch.compile(module, fullgraph=name == "ours")  # type: ignore[assignment]
    run = runs_of(module, given, kind, train)
    run = captured(run) if way == "graph" else run
    made = run()
    return run, (made[0] if train else made).clone()


def network_rows(sizes: Sizes, options: argparse.Namespace) -> Iterator[Row]:
    """Whole networks, for each width, size and precision."""
    for dim in options.dim or sizes.dims:
        modules, name = pair(dim, options.device, sizes.blocks)
        error = check(modules, *sizes.check, device=options.device)
        for (train, shape), kind in ((case, kind) for case in sizes.cases for kind in options.dtype):
            row = compare(modules, shape, kind, train, options.device, options.way, options.rounds)
            yield show({"part": "network", "what": f"dim {dim}", "peer": name, "error": error, **row})


def block_rows(sizes: Sizes, options: argparse.Namespace) -> Iterator[Row]:
    """One Intra-VSSM and one Inter-VSSM."""
    for dim in options.dim or sizes.block_dims:
        modules, name = pair(dim, options.device, (1, 1, 1))
        for slot in ("intra", "inter"):
            alone = {key: getattr(m.decoder_level1[0], slot) for key, m in modules.items()}  # type: ignore[union-attr]
            error = check(alone, 1, dim, 12, 20, device=options.device)
            for train, kind in ((train, kind) for train in (False, True) for kind in options.dtype):
                shape = (sizes.block[0], dim, *sizes.block[1:])
                row = compare(alone, shape, kind, train, options.device, options.way, options.rounds)
                yield show({"part": "block", "what": f"{slot}, dim {dim}", "peer": name, "error": error, **row})


def ss2d_rows(sizes: Sizes, options: argparse.Namespace) -> Iterator[Row]:
    """SS2D against four stacked sequences."""
    scan = plain_scan(options.device)
    for dim, expand, shape in SS2D_GPU if options.device == "cuda" else SS2D_CPU:
        ours, theirs = stirred(SS2D(dim, expand=expand)), conventional.StackedSS2D(dim, expand, scan)
        theirs.load_state_dict(ours.state_dict())
        modules = {"ours": ours.to(options.device), "conventional": theirs.to(options.device)}
        error = check(modules, 1, dim, 7, 12, device=options.device)
        for train, kind in ((train, kind) for train in (False, True) for kind in options.dtype):
            row = compare(
                modules, (shape[0], dim, *shape[1:]), kind, train, options.device, options.way, options.rounds
            )
            peer = "four stacked sequences, " + (
                "plain scan in PyTorch" if scan is materialised else "mamba-ssm's scan"
            )
            what = f"SS2D, inner width {int(expand * dim)}"
            yield show({"part": "ss2d", "what": what, "peer": peer, "error": error, **row})


def model_rows(sizes: Sizes, options: argparse.Namespace) -> Iterator[Row]:
    """Other networks of the package beside XYScanNet."""
    for name in sizes.models:
        torch.manual_seed(0)
        model = {"ours": create_model(name).to(options.device).eval()}
        for (train, shape), kind in ((case, kind) for case in sizes.model_cases for kind in options.dtype):
            row = compare(model, shape, kind, train, options.device, options.way, options.rounds)
            yield show({"part": "models", "what": name, **row})


@torch.inference_mode()
def stream_rows(sizes: Sizes, options: argparse.Namespace) -> Iterator[Row]:
    """Streamed and whole images, in bf16: time and memory by size, and errors against float32 of the smaller."""
    device = options.device
    for dim in options.dim or sizes.stream_dims:
        model = stirred(XYScanNet(dim, blocks=sizes.blocks)).to(device).eval()
        ways = {"whole": model, "streamed": partial(stream, model)}
        weights = sum(p.nbytes for p in model.parameters())
        small, large = sizes.stream
        x = image(1, 3, *small, device=device)
        with torch.backends.cudnn.flags(allow_tf32=False):
            exact = model(x) - x
        row: Row = {"part": "stream", "what": f"dim {dim}", "dtype": "bf16", "ways": {}}
        for h, w in sizes.stream:
            x = image(1, 3, h, w, device=device)
            for way, run in ways.items():
                key = f"{way}, {h}x{w}"

                def autocast(run: Callable[[Tensor], Tensor] = run, x: Tensor = x) -> Tensor:
                    with precision("bf16", device):
                        return run(x)

                try:
                    error = difference(autocast() - x, exact) if (h, w) == small else None
                    ms = interleaved({key: autocast}, device, rounds=max(3, options.rounds // 3))[key]
                    gib = (memory(autocast, device) + weights) / GIB
                    row["ways"][key] = {"ms": ms, "gib": gib, "ns_a_pixel": ms * 1e6 / h / w, "error": error}
                except torch.OutOfMemoryError:
                    row["ways"][key] = {"fails": "does not fit"}
        yield show(row)


def show(row: Row) -> Row:
    """Print a row, with the ratio of each way to the conventional composition as commonly run, or as published."""
    about = [row["part"], row["what"], "x".join(map(str, row.get("shape", []))), row["dtype"], row.get("pass", "")]
    print("\n" + ", ".join(filter(None, about)) + (f"; beside {row['peer']}" if row.get("peer") else ""), flush=True)
    base = row["ways"].get("conventional, eager") or (published(row) if torch.cuda.is_available() else {})
    for key, figures in row["ways"].items():
        if "fails" in figures:
            print(f"  {key:<24} {figures['fails']}", flush=True)
            continue
        line = f"  {key:<24} {figures['ms']:9.1f} ms"
        if base.get("ms"):
            figures["faster"] = base["ms"] / figures["ms"]
            line += f" ({figures['faster']:5.2f} x)"
        if figures.get("gib") is not None:
            line += f"  {figures['gib']:6.2f} GiB"
            if base.get("gib"):
                figures["memory"] = figures["gib"] / base["gib"]
                line += f" ({figures['memory']:4.2f} of it)"
        if figures.get("ns_a_pixel"):
            line += f"  {figures['ns_a_pixel']:.1f} ns a pixel"
        if figures.get("error") is not None:
            line += f"  error {figures['error']:.2e}"
        print(line, flush=True)
    return row


def store(path: Path, about: Row, rows: list[Row]) -> None:
    """Write figures; rows of an earlier run on the same device and versions stay unless they were measured again."""

    def key(row: Row) -> str:
        return json.dumps([row.get(name) for name in ("part", "what", "shape", "dtype", "pass")])

    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    earlier = kept.pop("rows", [])
    merged = {key(row): row for row in (earlier if kept == about else [])} | {key(row): row for row in rows}
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps({**about, "rows": list(merged.values())}, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)


MEASURES = dict(zip(PARTS, (network_rows, block_rows, stream_rows, ss2d_rows, model_rows), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--part", choices=PARTS, nargs="+", help="all on a GPU, the whole network on a CPU")
    parser.add_argument("--dim", type=int, nargs="+", help="widths instead of those of the table")
    parser.add_argument("--dtype", choices=list(TOLERANCE), nargs="+")
    parser.add_argument("--way", choices=WAYS, nargs="+", help="all on a GPU, eager on a CPU")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    gpu = options.device == "cuda"
    options.part = options.part or (PARTS if gpu else ["network"])
    options.dtype = options.dtype or (list(TOLERANCE) if gpu else ["fp32"])
    options.way = options.way or (WAYS if gpu else ["eager"])
    torch.backends.cudnn.benchmark = True
    about = {**machine(options.device), "units": {"ms": "median", "gib": "peak, weights included"}}
    print(about["device"], about["torch"])
    for part in options.part:
        for row in MEASURES[part](NETWORK_GPU if gpu else NETWORK_CPU, options):
            if options.json:
                store(options.json, about, [row])
        if gpu:
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
