"""Gates of whole rows and columns, found from their means."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slicescan.ops import dispatch
from slicescan.ops.library import looked_at, runs_kernels

FindGates = Callable[[Tensor], Tensor]
"""Gates of slices in order from their means, ``(b, slices, 1, d / 2)`` to the same."""


def has_slice_kernels(x: Tensor) -> bool:
    """Whether :func:`gate_slices` runs kernels on a map ``(b, h, w, d)``."""
    return x.is_contiguous() and x.numel() > 0 and runs_kernels(x.permute(0, 3, 1, 2))


def gate_slices(x: Tensor, find: FindGates, *, overwrite: bool = False) -> Tensor:
    """Multiply each row by a gate found from the means of all rows, and each column alike.

    ``a, b = halves(x)``, ``y = cat(a * find(mean of each row), b * find(mean of each column))``. On an NVIDIA device
    means, gates and gradients take one pass over the map each, and gradients keep nothing but ``x`` and the gates.

    Args:
        x: ``(b, h, w, d)``, with an even ``d``.
        find: Called for the rows of the first half of the channels, then for the columns of the second.
        overwrite: Whether the result may take the place of ``x`` where no gradients are recorded.

    Returns:
        ``(b, h, w, d)``.

    Example:
        >>> gate_slices(torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 2, 1, 2), lambda means: means).flatten()
        tensor([ 1.,  8.,  9., 24.])
    """
    if not has_slice_kernels(x):
        a, b = x.chunk(2, -1)
        return _gated(x, find(a.mean(2, keepdim=True)), find(b.mean(1)[:, :, None]))
    kernels, link, through = dispatch.load("cuda.slice_gate"), _Link(), None
    if torch.is_grad_enabled() and x.requires_grad:
        rows, columns, through = _Means.apply(x, link)
    else:
        rows, columns = kernels.means(x)
    gates = find(rows), find(columns)
    if not all([_fits(gate, mean) for gate, mean in zip(gates, (rows, columns), strict=True)]):
        return _gated(x, *gates)
    if torch.is_grad_enabled() and any([t.requires_grad for t in (x, *gates)]):
        return _Gate.apply(link, through, x, *gates)
    return kernels.gate(x, gates, overwrite=overwrite)


def _gated(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * rows, b * columns.transpose(1, 2)], -1)


def _fits(gate: Tensor, mean: Tensor) -> bool:
    return gate.shape == mean.shape and gate.dtype == mean.dtype and gate.device == mean.device


class _Link:
    """Gates of a call, which :class:`_Gate` tells :class:`_Means`."""

    gates: tuple[Tensor, Tensor]


class _Means(torch.autograd.Function):
    """Means of rows and of columns, and a view by which :class:`_Gate` hands on the gradient of its result.

    That is multiplied by the gates here, in the one pass that adds the gradient of the means.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, link: _Link) -> tuple[Tensor, ...]:
        ctx.link, ctx.shape = link, x.shape
        ctx.set_materialize_grads(False)
        rows, columns = dispatch.load("cuda.slice_gate").means(x)
        return rows, columns, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        given = next((grad for grad in grads if grad is not None), None)
        if given is None:
            return None, None
        (b, h, w, d), handed = ctx.shape, grads[2]
        rows, columns = (
            given.new_zeros(b, slices, 1, d // 2) if grad is None else grad
            for grad, slices in zip(grads[:2], (h, w), strict=True)
        )
        if handed is not None:
            return dispatch.load("cuda.slice_gate").map_gradient(handed, ctx.link.gates, (rows, columns)), None
        spread = (rows / w).expand(-1, -1, w, -1), (columns / h).transpose(1, 2).expand(-1, h, -1, -1)
        return torch.cat(spread, -1), None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, link: _Link, _: Tensor | None, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        link.gates = rows.detach(), columns.detach()  # as they are, they would hold the graph that holds them
        ctx.save_for_backward(x, rows, columns)
        return dispatch.load("cuda.slice_gate").gate(x, (rows, columns))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, rows, columns = ctx.saved_tensors
        if torch.is_grad_enabled() or looked_at():  # operations that can be differentiated and counted
            a, b = (grad * x).chunk(2, -1)
            return None, None, _gated(grad, rows, columns), a.sum(2, keepdim=True), b.sum(1)[:, :, None]
        _, handed, _, *gates = ctx.needs_input_grad
        sums = dispatch.load("cuda.slice_gate").gate_gradients(x, grad) if any(gates) else (None, None)
        return None, grad if handed else None, None, *sums
