"""Check and time the Triton backend on a GPU: ``python benchmarks/check_triton.py [check] [times] [tune]``.

Errors are relative RMS against the reference in float64, as a share of what is allowed: twice the reference's own error
with activations in the call's dtype, and a rounding. Times are medians in ms with the caches flushed between runs.
"""

import dataclasses
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from triton.testing import do_bench

from slicescan.ops.backends import reference
from slicescan.ops.backends import triton as backend
from slicescan.ops.call import ScanCall

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
MAPS = ("u", "delta", "z", "B", "C")
TENSORS = tuple(field.name for field in dataclasses.fields(ScanCall))[:9]


def draw(shape, dtype=BF16, *, n=16, groups=1, axis="w", reverse=False, carry=False, softplus=True, without="",
         layout="dense") -> ScanCall:  # fmt: skip
    """A random call; ``layout="slices"`` cuts maps and mixes out of wider tensors, ``"planes"`` puts channels first."""
    generator = torch.Generator("cuda").manual_seed(0)
    b, h, w, d = shape

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device="cuda", generator=generator)

    def laid(channels: int) -> Tensor:
        if layout == "planes":
            return normal(b, channels, h, w).to(dtype).permute(0, 2, 3, 1)
        if layout == "slices":
            return normal(b, h, w, channels + 6).to(dtype)[..., 3:-3]
        return normal(b, h, w, channels).to(dtype)

    tensors = {
        "u": laid(d),
        "delta": laid(d) if softplus else laid(d).abs() * 0.2,
        "A": -(
            torch.arange(1, n + 1, device="cuda") * (1 + 0.1 * torch.rand(d, n, device="cuda", generator=generator))
        ),
        "B": laid(groups * n).unflatten(-1, (groups, n)),
        "C": laid(groups * n).unflatten(-1, (groups, n)),
        "D": normal(d),
        "z": laid(d),
        "delta_bias": normal(d).abs() * 0.3 - 2.0 * softplus,
        "initial_state": normal(b, 1 if carry else h if axis == "w" else w, d, n),
    }
    tensors |= dict.fromkeys(without.split())
    return ScanCall(**tensors, axis=axis, reverse=reverse, carry=carry, delta_softplus=softplus)


def cases() -> Iterator[tuple[str, ScanCall]]:
    """Every case of the contract, once, in few variants of the kernels."""
    plain = "D z delta_bias initial_state"
    for dtype in (BF16, FP16, FP32):
        name = str(dtype).removeprefix("torch.")
        yield f"{name} rows 144", draw((2, 5, 65, 144), dtype)
        yield f"{name} columns 72, backwards", draw((1, 63, 7, 72), dtype, axis="h", reverse=True)
    yield "fp32, segments", draw((1, 1, 5000, 24), FP32)
    yield "bf16 segments, carried on, backwards", draw((1, 33, 100, 40), axis="h", carry=True, reverse=True)
    yield "bf16 carried on", draw((2, 8, 9, 24), carry=True)
    yield "fp32 nothing optional", draw((2, 3, 17, 36), FP32, without=plain)
    yield "bf16 steps as they are", draw((2, 3, 17, 36), softplus=False, without="delta_bias")
    yield "bf16 groups of 48", draw((2, 3, 40, 96), groups=2)
    yield "fp32 slices", draw((2, 3, 40, 33), FP32, layout="slices")
    yield "bf16 planes", draw((2, 8, 40, 32), layout="planes", axis="h")
    yield "fp32 n = 1", draw((2, 3, 40, 3), FP32, n=1)
    yield "bf16 n = 8", draw((2, 3, 40, 32), n=8)
    yield "fp32 n = 24", draw((2, 3, 40, 70), FP32, n=24)
    yield "bf16 n = 64", draw((2, 3, 40, 70), n=64)
    for length in (0, 1, 2, 257):
        yield f"bf16 l = {length}", draw((2, 3, length, 24))


def plainly(call: ScanCall, dtype: torch.dtype, grad_y: Tensor, grad_last: Tensor) -> dict[str, Tensor]:
    """Outputs and gradients of the reference, with activations in ``dtype``."""
    wide = torch.promote_types(dtype, FP32)
    given = [name for name in TENSORS if getattr(call, name) is not None]
    leaves = {k: getattr(call, k).detach().to(dtype if k in MAPS else wide).requires_grad_() for k in given}
    y, last = reference.slice_scan(dataclasses.replace(call, **leaves))
    grads = torch.autograd.grad(
        [y, last], list(leaves.values()), [grad_y.to(dtype), grad_last.to(wide)], allow_unused=True
    )
    found = {k: torch.zeros_like(x) if g is None else g for (k, x), g in zip(leaves.items(), grads, strict=True)}
    return {"y": y.detach(), "last": last.detach(), **found}


def ours(call: ScanCall, grad_y: Tensor, grad_last: Tensor) -> dict[str, Tensor]:
    """Outputs and gradients of the backend."""
    y, last, saved = backend.forward(call, save=True)
    grads = backend.backward(call, saved, grad_y, grad_last)
    return {"y": y, "last": last, **{k: g for k, g in grads._asdict().items() if g is not None}}


def error(x: Tensor, exact: Tensor) -> float:
    """Relative RMS."""
    return ((x.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item() if x.numel() else 0.0


def check() -> int:
    """How many cases are wrong; printed for each: what uses most of its allowance, and if a second run is equal."""
    failed = 0
    for name, call in cases():
        began = time.time()
        reason = backend.why_not(call)
        assert reason is None, reason
        y, last, _ = backend.forward(call, save=False)
        grad_y, grad_last = torch.randn_like(y), torch.randn_like(last)
        found = ours(call, grad_y, grad_last)
        again = ours(call, grad_y, grad_last)
        equal = all(torch.equal(found[k], again[k]) for k in found) and torch.equal(found["y"], y)
        exact = plainly(call, torch.float64, grad_y, grad_last)
        own = plainly(call, call.u.dtype, grad_y, grad_last)
        rounding = 1e-6 if call.u.dtype == FP32 else torch.finfo(call.u.dtype).eps / 4
        shares = {}
        for k in found:
            allowed = 2 * error(own[k], exact[k]) + rounding
            shares[k] = (error(found[k], exact[k]) / allowed, error(found[k], exact[k]))
        worst = max(shares, key=lambda k: shares[k][0] if shares[k][0] == shares[k][0] else float("inf"))
        bad = not equal or not shares[worst][0] <= 1
        failed += bad
        print(f"{'FAIL' if bad else 'ok  '} {name:38} worst {worst:13} {shares[worst][0]:6.2f} of allowed "
              f"({shares[worst][1]:.1e}) equal bits {equal} {time.time() - began:5.1f} s", flush=True)  # fmt: skip
    print(f"{failed} failed")
    return failed


TIMED = {
    "4x256x256x144": ((4, 256, 256, 144), {}),
    "4x256x256x144 columns": ((4, 256, 256, 144), {"axis": "h"}),
    "4x256x256x144 B, C in slices": ((4, 256, 256, 144), {"layout": "slices"}),
    "16x192x192x24": ((16, 192, 192, 24), {}),
    "4x128x128x288": ((4, 128, 128, 288), {}),
    "4x64x64x576": ((4, 64, 64, 576), {}),
    "1x720x1280x72 columns": ((1, 720, 1280, 72), {"axis": "h"}),
    "1x1x65536x72": ((1, 1, 65536, 72), {}),
    "4x256x256x144 fp32": ((4, 256, 256, 144), {"dtype": FP32}),
}


def times() -> None:
    """Print the time of the forward pass, alone and with saving, and of the backward pass."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'bf16, N = 16':34} {'forward':>8} {'saving':>8} {'backward':>8}   ms")
    for name, (shape, options) in TIMED.items():
        call = draw(shape, without="initial_state", **options)
        y, last, saved = backend.forward(call, save=True)
        passes = (
            lambda call=call: backend.forward(call, save=False),
            lambda call=call: backend.forward(call, save=True),
            lambda call=call, saved=saved, y=y: backend.backward(call, saved, y, None),
        )
        print(f"{name:34}" + "".join(f" {do_bench(f, return_mode='median', warmup=5, rep=50):8.3f}" for f in passes),
              flush=True)  # fmt: skip
    call = draw((1, 8, 8, 32), without="initial_state")
    y, last, saved = backend.forward(call, save=True)
    for name, run in (
        ("forward", lambda: backend.forward(call, save=False)),
        ("backward", lambda: backend.backward(call, saved, y, None)),
    ):
        run()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(200):
            run()
        torch.cuda.synchronize()
        print(f"launching a {name}: {(time.perf_counter() - began) * 5e3:.0f} us")


def tune() -> None:
    """Print the time of the backward pass for several limits of registers."""
    chosen = backend._REGISTERS
    for name in ("4x256x256x144", "16x192x192x24", "4x256x256x144 fp32"):
        shape, options = TIMED[name]
        call = draw(shape, without="initial_state", **options)
        y, last, saved = backend.forward(call, save=True)
        for registers in (128, 144, 168, 200, 255):
            backend._REGISTERS = registers
            ms = do_bench(lambda: backend.backward(call, saved, y, None), return_mode="median", warmup=5, rep=50)  # noqa: B023
            print(f"{name:34} {registers:4} registers {ms:8.3f} ms", flush=True)
    backend._REGISTERS = chosen


if __name__ == "__main__":
    parts = {"check": check, "times": times, "tune": tune}
    results = [parts[part]() for part in sys.argv[1:] or ("check", "times")]
    sys.exit(any(results))
