"""Two gates in one map: one half of the channels by row, the other by column."""

import torch
from torch import Tensor

from slicescan.ops import dispatch
from slicescan.ops.library import runs_kernels


def slice_gate(first: Tensor, second: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``cat(first * rows, second * columns)`` along the channels, written where it belongs.

    It is for calls that record no gradients. On a GPU one pass over the pixels makes both products.

    Args:
        first: ``(b, h, w, d)``; may be half the channels of a map.
        second: Of that shape, likewise.
        rows: What multiplies each row of ``first``, ``(b, h, 1, d)``.
        columns: What multiplies each column of ``second``, ``(b, 1, w, d)``.

    Returns:
        ``(b, h, w, 2 d)``.

    Example:
        >>> x = torch.ones(1, 2, 2, 1)
        >>> slice_gate(x, x, torch.tensor([2.0, 3.0]).view(1, 2, 1, 1), torch.tensor([4.0, 5.0]).view(1, 1, 2, 1))[0]
        tensor([[[2., 4.],
                 [2., 5.]],
        <BLANKLINE>
                [[3., 4.],
                 [3., 5.]]])
    """
    maps = [x.permute(0, 3, 1, 2) for x in (first, second, rows, columns)]
    if runs_kernels(*maps):
        return dispatch.load("cuda.slice_gate").forward(*maps).permute(0, 2, 3, 1)
    y = first.new_empty((*first.shape[:3], 2 * first.shape[3]))
    for x, gate, half in zip((first, second), (rows, columns), y.chunk(2, -1), strict=True):
        torch.mul(x, gate, out=half)
    return y
