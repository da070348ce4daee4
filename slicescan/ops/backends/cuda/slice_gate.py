"""Rows of one map and columns of another, multiplied by gates of their own and laid side by side in one pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from slicescan.ops.backends.cuda import pixels


def run(*maps: Tensor) -> Tensor:
    """What :func:`forward` returns, differentiably."""
    recorded = torch.is_grad_enabled() and any([x.requires_grad for x in maps])
    return _SliceGate.apply(*maps) if recorded else forward(*maps)


def forward(first: Tensor, second: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``cat(first * rows, second * columns)``, (b, 2 c, h, w), of maps (b, c, h, w), (b, c, h, 1) and (b, c, 1, w).

    All are of one dtype. Each product is rounded once, as PyTorch's.
    """
    maps = [pixels.flat(x) for x in (first, second, rows, columns)]
    b, c, h, w = first.shape
    y = pixels.empty(first, b, 2 * c, h, w)
    if y.numel():
        kernel, places = pixels.plan("slice_gate", "slice_gate_forward", c, *maps, y)
        pixels.launch(kernel, first, c, [*sum(places, []), b * h * w, h, w, c])
    return y


class _SliceGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *maps: Tensor) -> Tensor:
        ctx.save_for_backward(*maps)
        return forward(*maps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        first, second, rows, columns = ctx.saved_tensors
        one, two = grad_y.chunk(2, 1)
        grads = forward(one, two, rows, columns).chunk(2, 1)
        return *grads, (one * first).sum(3, keepdim=True), (two * second).sum(2, keepdim=True)
