"""Rows and columns of a map as wholes: their means, their gates, and the gradients of both, each in one pass over maps.

Maps are ``(b, h, w, d)``, contiguous and of one dtype; the first half of the channels belongs to rows, the second to
columns. What they have lies side by side, ``(b, max(h, w), 2, d / 2)``, with zeros behind the last of fewer slices.
"""

import functools
import math

import torch
from torch import Tensor

from slicescan.ops.backends.cuda import driver
from slicescan.ops.backends.cuda.driver import Kernel
from slicescan.ops.backends.cuda.plan import KINDS

_THREADS = 256
_LANES = 64  # neighbouring vectors of a block that takes sums, at most
_AHEAD, _ITEMS = 4, 2  # as the kernels have them
_ENOUGH_BLOCKS = 1024  # for either half; beyond these no sum is cut into parts


def means(x: Tensor) -> Tensor:
    """Means of the rows of one half and of the columns of the other, added up in float32 and a fixed order."""
    return _summed(x, None)


def gate(x: Tensor, gates: Tensor, *, overwrite: bool = False) -> Tensor:
    """``x`` times the gates of its slices, in its own place if ``overwrite``."""
    y = x if overwrite else torch.empty_like(x)
    _start_gate(x, gates, None, y)
    return y


def gate_gradients(x: Tensor, grad_y: Tensor) -> Tensor:
    """Gradients of the gates, from that of what :func:`gate` returns; order and precision as in :func:`means`."""
    return _summed(x, grad_y.contiguous())


def map_gradient(grad_y: Tensor, gates: Tensor, grad_means: Tensor) -> Tensor:
    """Gradient of a map that was gated and averaged."""
    grad_y = grad_y.contiguous()
    dx = torch.empty_like(grad_y)
    _start_gate(grad_y, gates, grad_means.contiguous(), dx)
    return dx


def _summed(x: Tensor, more: Tensor | None) -> Tensor:
    b, h, w, d = x.shape
    factor = 0 if more is None else more.data_ptr()
    kernels, grids, (rows, columns), wanted = _plan_sums(
        (b, h, w, d), x.dtype, _aligned(x.data_ptr(), factor), factor > 0
    )
    sums = torch.empty(sum(wanted), dtype=torch.float32, device=x.device)
    out = torch.empty((b, max(h, w), 2, d // 2), dtype=x.dtype, device=x.device)
    first, second = sums.data_ptr(), sums.data_ptr() + 4 * wanted[0]
    words = [x.data_ptr(), factor, out.data_ptr(), b, max(h, w), first, *rows, second, *columns]
    for kernel, grid in zip(kernels, grids, strict=True):
        driver.launch(x.device.index, kernel, grid, words)
    return out


def _start_gate(x: Tensor, gates: Tensor, more: Tensor | None, y: Tensor) -> None:
    gates = gates.contiguous()
    words = [x.data_ptr(), gates.data_ptr(), 0 if more is None else more.data_ptr(), y.data_ptr()]
    kernel, grid, sizes = _plan_gate(tuple(x.shape), x.dtype, _aligned(*words), more is not None)
    driver.launch(x.device.index, kernel, grid, words + sizes)


def _aligned(*places: int) -> int:
    """Bytes that all places are multiples of, 16 at most."""
    lowest = functools.reduce(int.__or__, places, 16)
    return lowest & -lowest


@functools.lru_cache(maxsize=512)
def _plan_sums(
    shape: tuple[int, int, int, int], dtype: torch.dtype, aligned: int, more: bool
) -> tuple[tuple[Kernel, Kernel], tuple[int, int], tuple[list[int], list[int]], tuple[int, int]]:
    """Kernels, their blocks, what they are told of rows and columns, and how many sums of parts either has."""
    b, h, w, d = shape
    macros, vector = _macros(d // 2, dtype, aligned, more)
    vectors = d // 2 // vector
    rows, columns = _side(h, b * h, vectors, w, d, w * d), _side(w, b, w * vectors, h, w * d, h * w * d)
    first = Kernel("slice_gate", "slice_gate_sums", macros, _THREADS, _THREADS * vector * 4)
    second = Kernel("slice_gate", "slice_gate_finish", macros, _THREADS, 0)
    grids = rows[1] + columns[1], -(-b * max(h, w) * d // _THREADS)
    wanted = b * h * (d // 2) * rows[5], b * w * (d // 2) * columns[5]
    return (first, second), grids, (rows, columns), wanted


def _side(slices: int, wholes: int, items: int, steps: int, step: int, jump: int) -> list[int]:
    """``Side`` of the kernels' source, behind the place of its sums."""
    tiles = -(-items // _LANES)
    lanes = -(-items // tiles)
    most = -(-steps // (_THREADS // lanes * _AHEAD))
    each = -(-steps // max(1, min(most, _ENOUGH_BLOCKS // (wholes * tiles))))
    parts = -(-steps // each)
    return [slices, wholes * tiles * parts, tiles, lanes, items, parts, each, steps, step, jump]


@functools.lru_cache(maxsize=512)
def _plan_gate(
    shape: tuple[int, int, int, int], dtype: torch.dtype, aligned: int, more: bool
) -> tuple[Kernel, int, list[int]]:
    b, h, w, d = shape
    macros, vector = _macros(d // 2, dtype, aligned, more)
    parts = -(-w * (d // vector) // (_THREADS * _ITEMS))
    return Kernel("slice_gate", "slice_gate_apply", macros, _THREADS, 0), b * h * parts, [h, w, max(h, w), parts]


def _macros(half: int, dtype: torch.dtype, aligned: int, more: bool) -> tuple[driver.Macros, int]:
    vector = math.gcd(aligned // dtype.itemsize, half)
    return (("KIND", KINDS[dtype]), ("WIDE", 0), ("HALF", half), ("V", vector), ("MORE", int(more))), vector
