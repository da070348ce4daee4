"""Check and time the kernels on maps between the scans on a GPU: ``python benchmarks/check_cuda.py fuse``.

Errors are relative RMS of results and gradients against float64, beside those of plain PyTorch in the same dtype. Times
are medians in ms with flushed caches, plain PyTorch's under autocast as the networks call it, next to the time that the
maps read and written need at the device's bandwidth.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slicescan.ops import divergence, silu_gate, slice_gate, twice

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.0e12}  # bytes a second
MODULES = (divergence, silu_gate, slice_gate, twice)
SIZES = [(2, 6, 5, 7), (2, 24, 33, 18), (1, 72, 45, 80), (2, 35, 1, 1), (3, 40, 16, 1)]
LARGE = [(1, 144, 720, 1280), (4, 144, 256, 256)]


class Op(NamedTuple):
    """A function of maps, what it is called with, and the sizes of maps moved forwards and backwards."""

    run: Callable[..., Tensor]
    draw: Callable[..., list[Tensor]]
    forward: float
    backward: float


def image(b: int, c: int, h: int, w: int) -> Tensor:
    return torch.randn(b, h, w, c, device="cuda").permute(0, 3, 1, 2)


def levels(b: int, c: int, h: int, w: int) -> list[Tensor]:
    return [image(b, c, h, w), image(b, c, -(-h // 2), -(-w // 2)), image(b, c, -(-h // 4), -(-w // 4))]


def gated_slices(x: Tensor) -> Tensor:
    return slice_gate.gate_slices(x.permute(0, 2, 3, 1), torch.sigmoid).permute(0, 3, 1, 2)


OPS = {
    "silu_gate": Op(
        silu_gate.silu_gate, lambda b, c, h, w: [image(b, 2 * c, h, w)[:, c:], image(b, c, h, w)], 3, 5
    ),
    "slice_gate": Op(gated_slices, lambda b, c, h, w: [image(b, c + c % 2, h, w)], 3, 4),
    "twice": Op(twice.twice, lambda b, c, h, w: [image(b, c, -(-h // 2), -(-w // 2))], 1.25, 1.25),
    "fusion, image": Op(
        lambda x, *maps: divergence.gated_by_divergence(x, maps, per_image=True), levels, 4.625, 11
    ),
    "fusion, batch": Op(
        lambda x, *maps: divergence.gated_by_divergence(x, maps, per_image=False), levels, 4.625, 11
    ),
}  # fmt: skip


@contextlib.contextmanager
def plainly():
    """Run plain PyTorch in place of the kernels."""
    kept = [module.runs_kernels for module in MODULES]
    for module in MODULES:
        module.runs_kernels = lambda *_: False
    try:
        yield
    finally:
        for module, function in zip(MODULES, kept, strict=True):
            module.runs_kernels = function


def results(run: Callable[..., Tensor], maps: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [x.detach().to(dtype).requires_grad_() for x in maps]
    y = run(*leaves)
    probe = torch.randn(y.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    return [y.detach(), *torch.autograd.grad(y, leaves, probe.to(maps[0].dtype).to(y.dtype))]


def error(x: Tensor, exact: Tensor) -> float:
    return ((x.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def check(name: str, kind: str, size: tuple[int, ...]) -> bool:
    """Whether an op is right and gives equal bits in 20 runs; what is wrong is printed."""
    op, dtype = OPS[name], DTYPES[kind]
    maps = [x.to(dtype) for x in op.draw(*size)]
    exact = results(op.run, maps, torch.float64)
    with plainly():
        plain = results(op.run, maps, dtype)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    found = results(op.run, maps, dtype)
    torch.use_deterministic_algorithms(False)
    with torch.no_grad():
        fails = [] if torch.equal(found[0], op.run(*maps)) else ["without gradients it differs"]
    for i, (mine, theirs, truth) in enumerate(zip(found, plain, exact, strict=True)):
        allowed = max(2 * error(theirs, truth), 1e-6) + torch.finfo(dtype).eps  # special functions are approximate
        if not error(mine, truth) <= allowed:
            fails.append(f"{i}: {error(mine, truth):.1e} > {allowed:.1e}")
    for _ in range(20):
        if not all(torch.equal(a, b) for a, b in zip(results(op.run, maps, dtype), found, strict=True)):
            fails.append("two runs differ")
            break
    if fails:
        print("WRONG", name, kind, size, *fails, flush=True)
    return not fails


def times(name: str, kind: str, size: tuple[int, ...]) -> None:
    from triton.testing import do_bench

    op, dtype = OPS[name], DTYPES[kind]
    maps = [x.to(dtype) for x in op.draw(*size)]
    one = torch.Size(size).numel() * dtype.itemsize

    def measured() -> list[float]:
        leaves = [x.detach().requires_grad_() for x in maps]
        with torch.autocast("cuda", dtype, enabled=kind != "fp32"):
            with torch.no_grad():
                forward = do_bench(lambda: op.run(*maps), warmup=10, rep=50, return_mode="median")
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                op.run(*maps)
                peak = (torch.cuda.max_memory_allocated() - before) / one
            y = op.run(*leaves)
        probe = torch.ones_like(y)

        def back() -> None:
            torch.autograd.grad(y, leaves, probe, retain_graph=True)

        return [forward, do_bench(back, warmup=10, rep=50, return_mode="median"), peak]

    ours = measured()
    with plainly():
        theirs = measured()
    rate = next((r for card, r in BANDWIDTH.items() if card in torch.cuda.get_device_name()), float("nan"))
    cells = (
        f"{way} {mine:.3f}, torch {other:.3f}, floor {count * one / rate * 1e3:.3f}"
        for way, mine, other, count in zip(
            ("forward", "backward"), ours, theirs, (op.forward, op.backward), strict=False
        )
    )
    print(
        f"{name:14s} {kind} {size} |",
        " | ".join(cells),
        f"| maps held {ours[2]:.1f}, torch {theirs[2]:.1f}",
        flush=True,
    )


def beyond_int() -> bool:
    """Whether a map of more than 2**31 elements is enlarged as its parts are, by the kernel and without it."""
    x = torch.randn(1, 1100, 2000, 288, device="cuda", dtype=torch.bfloat16).permute(0, 3, 1, 2)
    y, right = twice.twice(x), True
    for rows, wanted in ((slice(0, 20), slice(0, 30)), (slice(1080, 1100), slice(2170, 2200))):
        part = twice.twice(x[:, :, rows].contiguous(memory_format=torch.channels_last))
        right &= torch.equal(y[:, :, wanted], part[:, :, :30] if rows.start == 0 else part[:, :, 10:])
    with plainly():
        right &= error(twice.twice(x)[:, :, -30:], y[:, :, -30:].double()) < 1e-2
    print(f"{y.numel() / 2**31:.2f} x 2**31 elements: {'right' if right else 'WRONG'}", flush=True)
    return right


def main() -> int:
    """How many cases are wrong; then print the times."""
    print(torch.cuda.get_device_name(), torch.__version__)
    cases = list(itertools.product(OPS, DTYPES, SIZES))
    wrong = sum(not check(*case) for case in cases) + (not beyond_int())
    print(f"{len(cases)} cases, {wrong} wrong; 20 runs each")
    for case in itertools.product(OPS, ("bf16", "fp32"), LARGE):
        times(*case)
    return wrong
