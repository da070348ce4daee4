"""The gate of one map by another on the CPU, in one pass over memory."""

from typing import Any

import torch
from torch import Tensor

from slicescan.ops.backends.cpu import numba_missing
from slicescan.ops.backends.cpu.threads import share

PIECE = 1 << 15
"""Numbers of a piece of work, about."""


def why_not(a: Tensor, b: Tensor) -> str | None:
    """Say in one sentence why the kernel cannot take maps ``(b, h, w, c)``, or None if it can."""
    if any([x.device.type != "cpu" or x.dtype != torch.float32 for x in (a, b)]):
        return "needs float32 on the CPU"
    if a.shape != b.shape or not a.numel():
        return "needs maps of one size, not empty"
    if not (_is_even(a) and _is_even(b)):
        return "needs pixels at even distances, with their channels side by side"
    return numba_missing()


def silu_gate(a: Tensor, b: Tensor) -> Tensor:
    """``silu(a) * b`` of maps ``(b, h, w, c)``, without a record for gradients."""
    from slicescan.ops.backends.cpu.gate_kernel import silu_gate as kernel

    y = a.new_empty(a.shape)
    channels = a.shape[3]
    pixels = max(1, PIECE // channels)
    arguments = (channels, pixels, *(_line(x) for x in (y, a, b)), *(x.stride(2) for x in (a, b)))
    share(kernel, arguments, pieces=-(-y.numel() // (channels * pixels)), updates=y.numel(), alive=(y, a, b))
    return y


def _is_even(x: Tensor) -> bool:
    b, h, w, c = x.stride()
    return c == 1 and (x.shape[1] == 1 or h == x.shape[2] * w) and (x.shape[0] == 1 or b == x.shape[1] * h)


def _line(x: Tensor) -> Any:
    """All numbers from the first to the last of a map, those between its pixels too."""
    return x.detach().as_strided(((x.shape[:3].numel() - 1) * x.stride(2) + x.shape[3],), (1,)).numpy()
