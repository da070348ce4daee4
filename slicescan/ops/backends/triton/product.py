"""Products of float32 maps with matrices, in full precision by the tensor cores of GPUs that gain by it.

Each factor is split in two numbers that the tensor cores take, and three of the four products are summed: the error is
that of a product in float32, or less, and the time about half of it.
"""

import importlib
from contextlib import nullcontext
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from slicescan.ops.backends import triton as backend

GAINING = ((9, 0),)
"""Compute capabilities for which it was measured that products gain."""

LEAST = 2**30
"""Multiplications below which PyTorch's product is as fast, and cheaper to start."""


def why_not(x: Tensor, weight: Tensor) -> str | None:
    """Say in one sentence why maps ``(..., k)`` are not multiplied by ``(n, k)`` here, or None if they are."""
    if not x.is_cuda or torch.version.hip:
        return "needs tensors of an NVIDIA device"
    if not x.dtype == weight.dtype == torch.float32:
        return "multiplies float32"
    if torch.get_float32_matmul_precision() != "highest":
        return "is not needed where products may be less precise"
    if x.numel() * weight.shape[0] < LEAST:
        return "is slower for small maps"
    if x.stride(-1) != 1:
        return "needs the channels of a pixel side by side"
    return _lacking(x.device)


def run(x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Write ``x @ weight.T`` to a map, or add it to what is there, and return the map.

    Args:
        x: ``(lines, pixels, k)``, ``k`` side by side.
        weight: ``(n, k)``.
        out: ``(lines, pixels, n)``, ``n`` side by side.
        add: Whether to add.
    """
    weight = weight.contiguous()
    (lines, width, k), n = x.shape, len(weight)
    columns = _columns(n)
    programs = -(-lines * width // _PIXELS) * -(-n // columns)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _kernels().product[(programs,)](
            x, weight, out, lines * width, width, x.stride(0), width, out.stride(0),
            x_step=x.stride(1), y_step=out.stride(1), K=k, N=n, ADD=add,
            PIXELS=_PIXELS, COLUMNS=columns, DEPTH=_depth(k), num_warps=4, num_stages=3,
        )  # fmt: skip
    return out


_PIXELS = 64


def _columns(n: int) -> int:
    """64 or 128 columns at once: the wider, unless it computes a fifth more for nothing."""
    wide, narrow = (-(-n // columns) * columns for columns in (128, 64))
    return 64 if narrow <= 0.85 * wide else 128


def _depth(k: int) -> int:
    return 32 if k % 32 == 0 or k > 144 else 16


@cache
def _lacking(device: torch.device) -> str | None:
    if not backend._installed():
        return "needs Triton: pip install triton"
    if torch.cuda.get_device_capability(device) not in GAINING:
        return "is for GPUs on which it was measured to gain"
    return backend._compiler_missing()


@cache
def _kernels() -> ModuleType:
    return importlib.import_module("slicescan.ops.backends.triton.product_kernel")
