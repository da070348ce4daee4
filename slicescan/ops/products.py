"""Products of maps with matrices, written to a map that is there."""

import torch
from torch import Tensor

from slicescan.ops import dispatch


def product(x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Write ``x @ weight.T`` to a map, or add it to what is there, and return the map; nothing is recorded.

    Large products in full float32 take the tensor cores of GPUs that gain by it, in parts whose sum is as exact.

    Args:
        x: ``(pixels, k)`` or ``(lines, pixels, k)``, any strides.
        weight: ``(n, k)``, any strides, in the dtype of ``x``.
        out: Like ``x``, of ``n`` channels.
        add: Whether to add.

    Example:
        >>> product(torch.ones(1, 2), torch.ones(3, 2), torch.ones(1, 3), add=True)
        tensor([[3., 3., 3.]])
    """
    if dispatch.has_float_products(x, weight, out):
        lines = [t if t.ndim == 3 else t[None] for t in (x, out)]
        dispatch.load("triton.product").run(lines[0], weight, lines[1], add=add)
        return out
    if x.ndim == 3:
        many = weight.t().expand(len(x), -1, -1)
        return out.baddbmm_(x, many) if add else torch.bmm(x, many, out=out)
    return out.addmm_(x, weight.t()) if add else torch.mm(x, weight.t(), out=out)
