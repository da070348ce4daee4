"""Kernels that take maps as pixels at equal distances, with the channels of each side by side."""

import functools
import math

import torch
from torch import Tensor

from slicescan.ops.backends.cuda import driver
from slicescan.ops.backends.cuda.plan import KINDS, reach

THREADS = 256
_ORDER = torch.channels_last
_Layout = tuple[tuple[int, ...], tuple[int, ...], int]


def flat(x: Tensor) -> Tensor:
    """``x`` (b, c, h, w) if its pixels lie at equal distances, as in half the channels of a map; else such a copy."""
    if x.is_contiguous(memory_format=_ORDER) or _pitch(x.shape, x.stride()):
        return x
    return x.contiguous(memory_format=_ORDER)


def empty(x: Tensor, b: int, c: int, h: int, w: int) -> Tensor:
    """An uninitialised map of the kind of ``x``, with the channels of a pixel side by side."""
    return torch.empty((b, c, h, w), dtype=x.dtype, device=x.device, memory_format=_ORDER)


@functools.lru_cache(maxsize=1024)
def _pitch(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from a pixel to the next, 0 if there is no one number."""
    b, c, h, w = shape
    if c > 1 and stride[1] != 1:
        return 0
    found, pixels = 0, 1
    for n, step in ((w, stride[3]), (h, stride[2]), (b, stride[0])):
        if n > 1:
            found = found or step
            if step != found * pixels:
                return 0
        pixels *= n
    return found or c


def plan(
    file: str, name: str, channels: int, *maps: Tensor, shared: int = 0, **macros: int
) -> tuple[driver.Kernel, list[list[int]]]:
    """A kernel for the channels of ``maps``, and the map as ``Pixels`` of pixels.cuh for each."""
    layouts = tuple([(x.shape, x.stride(), x.data_ptr() % 16) for x in maps])
    kernel, pitches = _planned(file, name, channels, maps[0].dtype, layouts, shared, tuple(macros.items()))
    return kernel, [[x.data_ptr(), pitch] for x, pitch in zip(maps, pitches, strict=True)]


@functools.lru_cache(maxsize=1024)
def _planned(
    file: str,
    name: str,
    channels: int,
    dtype: torch.dtype,
    layouts: tuple[_Layout, ...],
    shared: int,
    more: driver.Macros,
) -> tuple[driver.Kernel, list[int]]:
    pitches, size = [_pitch(shape, stride) for shape, stride, _ in layouts], dtype.itemsize
    vector = math.gcd(16 // size, channels, *pitches, *[aligned // size for _, _, aligned in layouts])
    wide = any(reach(stride, shape) >= 2**31 - 2**20 for shape, stride, _ in layouts)
    macros = (("KIND", KINDS[dtype]), ("WIDE", int(wide)), ("V", vector), *more)
    return driver.Kernel(file, name, macros, THREADS, shared), pitches


def launch(kernel: driver.Kernel, x: Tensor, channels: int, words: list[int]) -> None:
    """Start one thread for every vector of ``channels`` of the pixels of ``x``."""
    jobs = x.numel() // x.shape[1] * (channels // vector(kernel))
    driver.launch(x.device.index, kernel, -(-jobs // THREADS), words)


def vector(kernel: driver.Kernel) -> int:
    """Neighbouring channels of a thread."""
    return kernel.macros[2][1]
