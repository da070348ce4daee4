"""Maps gated by how much they diverge from another: ``kl(n, x) = mean(sigmoid(x) (log sigmoid(x) - log sigmoid(n)))``.

Maps may have other sizes than ``x``, ``(b, c, h, w)``; they are enlarged by nearest neighbour. On an NVIDIA device maps
with the channels of a pixel side by side take kernels that read them at their own size and keep no map but the three;
on a CPU the sums of two maps take one, in float32 and where nothing records gradients.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from slicescan.ops import dispatch
from slicescan.ops.library import is_final, runs_kernels, traces_kernels, without_autocast


def gated_by_divergence(x: Tensor, maps: Sequence[Tensor], *, per_image: bool) -> Tensor:
    """``cat(x, g0 n0 + g1 n1)`` with ``g = sigmoid(kl(n, x))``: ``(b, 2 c, h, w)``.

    Args:
        x: ``(b, c, h, w)``.
        maps: Two maps ``n`` of as many channels.
        per_image: Whether each image has its own gates; otherwise the mean runs over the batch.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> gated_by_divergence(x, [x, x], per_image=True).flatten()
        tensor([1., 1.])
    """
    given = (x, *maps)
    if traces_kernels(*given):
        return dispatch.traced_divergence(x, maps[0], maps[1], per_image)[0]
    if runs_kernels(*given):
        recorded = torch.is_grad_enabled() and any([t.requires_grad for t in given])
        return _Gated.apply(*given, per_image) if recorded else _by_kernels(x, maps, per_image)[0]
    maps = [nearest(n, x) for n in maps]
    if _is_final(x, maps):
        kl = dispatch.load("cpu.pixels").divergences(x, maps) / math.prod(x.shape[1:])
    else:
        kl = torch.stack([divergence.mean((1, 2, 3)) for divergence in elementwise_divergences(x, maps)], 1)
    return beside(x, maps, divergence_gates(kl, per_image=per_image))


def _by_kernels(x: Tensor, maps: Sequence[Tensor], per_image: bool) -> tuple[Tensor, Tensor]:
    return dispatch.load("cuda.divergence").forward(x, maps, per_image)


def _is_final(x: Tensor, maps: Sequence[Tensor]) -> bool:
    """Whether a CPU has the kernel for the sums over maps of one size, of which nobody keeps a record."""
    return len(maps) == 2 and is_final(x, *maps) and dispatch.has_cpu_kernels(x, *maps)


class _Gated(torch.autograd.Function):
    """The kernels; only the three maps are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor, per_image: bool) -> Tensor:
        z, gates = _by_kernels(x, (first, second), per_image)
        ctx.save_for_backward(x, first, second, gates)
        ctx.per_image = per_image
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_z: Tensor) -> tuple[Tensor | None, ...]:
        x, first, second, gates = ctx.saved_tensors
        kernels = dispatch.load("cuda.divergence")
        return (*kernels.backward(x, (first, second), gates, grad_z, ctx.per_image), None)


def divergence_sums(x: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Sums over each image whose means are ``kl(n, x)``: ``(b, len(maps))``, float32 or wider."""
    if not torch.is_grad_enabled() and runs_kernels(x, *maps):
        return dispatch.load("cuda.divergence").sums(x, maps)
    maps = [nearest(n, x) for n in maps]
    if _is_final(x, maps):
        return dispatch.load("cpu.pixels").divergences(x, maps)
    return torch.stack([divergence.sum((1, 2, 3)) for divergence in elementwise_divergences(x, maps)], 1)


def divergence_gates(kl: Tensor, *, per_image: bool) -> Tensor:
    """Gates from the mean divergences of each image, ``(b, n)`` both."""
    return torch.sigmoid(kl if per_image else kl.mean(0, keepdim=True).expand_as(kl))


def beside(x: Tensor, maps: Sequence[Tensor], gates: Tensor) -> Tensor:
    """``cat(x, g0 n0 + g1 n1)`` for given gates, ``(b, 2)``."""
    if not torch.is_grad_enabled() and runs_kernels(x, *maps):
        return dispatch.load("cuda.divergence").mix(x, maps, gates)
    p, q = (gates[:, i, None, None, None].to(x.dtype) * nearest(n, x) for i, n in enumerate(maps))
    return torch.cat([x, p + q], 1)


def elementwise_divergences(x: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """What each ``kl(n, x)`` is the mean of, for maps of one size."""
    target = _distribution(x)
    return [_divergence(n, *target) for n in maps]


def nearest(x: Tensor, target: Tensor) -> Tensor:
    """``x`` at the size of ``target``: pixels are copied, so that autocast has nothing to widen."""
    size = target.shape[2:]
    if x.shape[2:] == size:
        return x
    with without_autocast(x.device.type):
        return F.interpolate(x, size, mode="nearest")


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _distribution(x: Tensor) -> tuple[Tensor, Tensor]:
    """``sigmoid(x)`` and its logarithm."""
    return torch.sigmoid(_wide(x)), F.logsigmoid(_wide(x))


def _divergence(n: Tensor, p: Tensor, log_p: Tensor) -> Tensor:
    return p * (log_p - F.logsigmoid(_wide(n)))
