"""Gates of whole rows and columns, found from their means."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.ops import dispatch
from slicescan.ops.library import looked_at, runs_kernels

FindGates = Callable[[Tensor], Tensor]


def has_slice_kernels(x: Tensor) -> bool:
    """Whether :func:`gate_slices` runs kernels on a map ``(b, h, w, d)``."""
    return runs_kernels(x.permute(0, 3, 1, 2)) and x.is_contiguous() and x.numel() > 0


def gate_slices(x: Tensor, find: FindGates, *, overwrite: bool = False) -> Tensor:
    """Multiply each row by a gate found from the means of the rows before it, and each column alike.

    The first half of the channels is gated by rows, the second by columns. On an NVIDIA device means, gates and
    gradients take one pass over the map each, and gradients keep nothing but ``x`` and the gates.

    Args:
        x: ``(b, h, w, d)``, with an even ``d``.
        find: Takes means to gates, ``(b, max(h, w), 2, d / 2)``: those of rows beside those of columns. Behind the last
            of fewer slices lie zeros; no gate is to depend on what is behind it.
        overwrite: Whether the result may take the place of ``x`` where no gradients are recorded.

    Returns:
        ``(b, h, w, d)``.

    Example:
        >>> gate_slices(torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 2, 1, 2), lambda means: means).flatten()
        tensor([ 1.,  8.,  9., 24.])
    """
    if not has_slice_kernels(x):
        a, b = x.chunk(2, -1)
        return _gated(x, find(_beside(a.mean(2), b.mean(1))))
    kernels, link, through = dispatch.load("cuda.slice_gate"), _Link(), None
    if torch.is_grad_enabled() and x.requires_grad:
        means, through = _Means.apply(x, link)
    else:
        means = kernels.means(x)
    gates = find(means)
    if gates.shape != means.shape or gates.dtype != means.dtype:
        return _gated(x, gates)
    if torch.is_grad_enabled() and (x.requires_grad or gates.requires_grad):
        return _Gate.apply(link, through, x, gates)
    return kernels.gate(x, gates, overwrite=overwrite)


def _beside(rows: Tensor, columns: Tensor) -> Tensor:
    """``(b, h, c)`` and ``(b, w, c)`` as ``(b, max(h, w), 2, c)``."""
    length = max(rows.shape[1], columns.shape[1])
    return torch.stack([F.pad(t, (0, 0, 0, length - t.shape[1])) for t in (rows, columns)], 2)


def _gated(x: Tensor, gates: Tensor) -> Tensor:
    _, h, w, _ = x.shape
    a, b = x.chunk(2, -1)
    return torch.cat([a * gates[:, :h, 0, None], b * gates[:, None, :w, 1]], -1)


class _Link:
    """Gates of a call, which :class:`_Gate` tells :class:`_Means`."""

    gates: Tensor


class _Means(torch.autograd.Function):
    """Means of slices, and a view by which :class:`_Gate` hands on the gradient of its result.

    That is multiplied by the gates here, in the one pass that adds the gradient of the means.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, link: _Link) -> tuple[Tensor, Tensor]:
        ctx.link, ctx.shape = link, x.shape
        ctx.set_materialize_grads(False)
        return dispatch.load("cuda.slice_gate").means(x), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad_means: Tensor | None, handed: Tensor | None) -> tuple[Tensor | None, None]:
        if handed is not None:
            grad_means = torch.zeros_like(ctx.link.gates) if grad_means is None else grad_means
            return dispatch.load("cuda.slice_gate").map_gradient(handed, ctx.link.gates, grad_means), None
        if grad_means is None:
            return None, None
        _, h, w, _ = ctx.shape
        rows, columns = grad_means[:, :h, 0, None] / w, grad_means[:, None, :w, 1] / h
        return torch.cat([rows.expand(-1, -1, w, -1), columns.expand(-1, h, -1, -1)], -1), None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, link: _Link, through: Tensor | None, x: Tensor, gates: Tensor) -> Tensor:
        link.gates = gates.detach()  # as it is, it would hold the graph that holds it
        ctx.save_for_backward(x, gates)
        return dispatch.load("cuda.slice_gate").gate(x, gates)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gates = ctx.saved_tensors
        if torch.is_grad_enabled() or looked_at():  # operations that can be differentiated and counted
            a, b = (grad * x).chunk(2, -1)
            return None, None, _gated(grad, gates), _beside(a.sum(2), b.sum(1))
        (_, handed, _, needed), grad = ctx.needs_input_grad, grad.contiguous()
        sums = dispatch.load("cuda.slice_gate").gate_gradients(x, grad) if needed else None
        return None, grad if handed else None, None, sums
