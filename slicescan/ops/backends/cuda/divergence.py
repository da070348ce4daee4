"""Two maps gated by their divergence from a third: sums and the gated maps beside it, each in one pass."""

import math
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from slicescan.ops.backends.cuda import driver, pixels

_ROWS = 1024  # blocks whose sums remain
_NOTHING = [0, 0]


def forward(x: Tensor, maps: Sequence[Tensor], per_image: bool) -> tuple[Tensor, Tensor]:
    """``(x, g0 n0 + g1 n1)`` along the channels, and the gates (b, 2), each image's own or those of the batch."""
    means = sums(x, maps) / math.prod(x.shape[1:])
    gates = torch.sigmoid(means if per_image else means.mean(0, keepdim=True).repeat(len(means), 1))
    return mix(x, maps, gates), gates


def traced(x: Tensor, first: Tensor, second: Tensor, per_image: bool) -> tuple[Tensor, Tensor]:
    """:func:`forward` as an operator, differentiably, for compilation."""
    return _gated(x, first, second, per_image)


def sums(x: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Divergence of each of two ``maps`` from ``x``, summed over every image: (b, 2), float32."""
    return _summed(pixels.flat(x), [pixels.flat(n) for n in maps], None)


def mix(x: Tensor, maps: Sequence[Tensor], gates: Tensor) -> Tensor:
    """``(x, g0 n0 + g1 n1)`` along the channels, for ``gates`` (b, 2)."""
    x, maps = pixels.flat(x), [pixels.flat(n) for n in maps]
    b, c, h, w = x.shape
    z = pixels.empty(x, b, 2 * c, h, w)
    if z.numel():
        _start("divergence_mix", x, x, maps, z, None, gates.float().contiguous())
    return z


def backward(
    x: Tensor, maps: Sequence[Tensor], gates: Tensor, grad_z: Tensor, per_image: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x`` and of both ``maps``."""
    x, maps, grad_z = pixels.flat(x), [pixels.flat(n) for n in maps], pixels.flat(grad_z)
    dx, first, second = (pixels.empty(t, *t.shape) for t in (x, *maps))
    if not x.numel():
        return dx, first.zero_(), second.zero_()
    slopes = _summed(x, maps, grad_z) * (gates * (1 - gates)) / math.prod(x.shape[1:])
    if not per_image:
        slopes = slopes.mean(0, keepdim=True).expand_as(slopes)
    factors = torch.cat([gates, slopes], 1)
    _start("divergence_gradient", x, x, maps, grad_z, dx, factors)
    for which, grad in enumerate((first, second)):
        _start("divergence_spread", grad, x, maps, grad_z, grad, factors, which)
    return dx, first, second


def _summed(x: Tensor, maps: Sequence[Tensor], grad_z: Tensor | None) -> Tensor:
    b, c, h, w = x.shape
    if not x.numel():
        return torch.zeros((b, 2), dtype=torch.float32, device=x.device)
    kernel, places = _plan("divergence_sums", x, maps, grad_z, None)
    rows = max(1, min(_ROWS // b, -(-h * w * (c // pixels.vector(kernel)) // pixels.THREADS)))
    found = torch.empty((b, rows, 2), dtype=torch.float32, device=x.device)
    driver.launch(x.device.index, kernel, b * rows, [*places, 0, found.data_ptr(), b, h, w, c, rows, 0])
    return found.sum(1)


def _start(
    name: str,
    over: Tensor,
    x: Tensor,
    maps: Sequence[Tensor],
    z: Tensor,
    out: Tensor | None,
    factors: Tensor,
    which: int = 0,
) -> None:
    b, c, h, w = x.shape
    kernel, places = _plan(name, x, maps, z, out)
    pixels.launch(kernel, over, c, [*places, factors.data_ptr(), 0, b, h, w, c, 0, which])


def _plan(
    name: str, x: Tensor, maps: Sequence[Tensor], z: Tensor | None, out: Tensor | None
) -> tuple[driver.Kernel, list[int]]:
    """A kernel, and the maps as the beginning of its argument."""
    given = [t for t in (x, *maps, z, out) if t is not None]
    gradient = int(name == "divergence_sums" and z is not None)
    shared = 2 * pixels.THREADS * 4 if name == "divergence_sums" else 0
    kernel, places = pixels.plan("divergence", name, x.shape[1], *given, shared=shared, GRADIENT=gradient)
    at, first, second, *more = places
    beside = more.pop(0) if z is not None else _NOTHING
    levels = [
        word for place, n in zip((first, second), maps, strict=True) for word in (*place, *_sizes(n.shape, x.shape))
    ]
    return kernel, [*at, *beside, *(more[0] if more else _NOTHING), *levels]


@lru_cache(maxsize=256)
def _sizes(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of a map, and the bits of their ratios to those of what it is enlarged to."""
    ratios = [o / n for o, n in zip(old[2:], new[2:], strict=True)]
    return (*old[2:], *struct.unpack("<2I", struct.pack("<2f", *ratios)))


@torch.library.custom_op("slicescan::cuda_divergence", mutates_args=())
def _gated(x: Tensor, first: Tensor, second: Tensor, per_image: bool) -> tuple[Tensor, Tensor]:
    return forward(x, (first, second), per_image)


@_gated.register_fake
def _(x: Tensor, first: Tensor, second: Tensor, per_image: bool) -> tuple[Tensor, Tensor]:
    b, c, h, w = x.shape
    return pixels.empty(x, b, 2 * c, h, w), torch.empty((b, 2), dtype=torch.float32, device=x.device)


@torch.library.custom_op("slicescan::cuda_divergence_backward", mutates_args=())
def _gated_backward(
    x: Tensor, first: Tensor, second: Tensor, gates: Tensor, grad_z: Tensor, per_image: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return backward(x, (first, second), gates, grad_z, per_image)


@_gated_backward.register_fake
def _(
    x: Tensor, first: Tensor, second: Tensor, gates: Tensor, grad_z: Tensor, per_image: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dfirst, dsecond = (pixels.empty(t, *t.shape) for t in (x, first, second))
    return dx, dfirst, dsecond


def _setup(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    x, first, second, ctx.per_image = inputs
    ctx.save_for_backward(x, first, second, output[1])


def _gradients(ctx: Any, grad_z: Tensor, grad_gates: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gated_backward(*ctx.saved_tensors, grad_z, ctx.per_image), None)


_gated.register_autograd(_gradients, setup_context=_setup)
