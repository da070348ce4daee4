"""Rows of one map and columns of another, multiplied by gates of their own and laid side by side in one pass."""

from torch import Tensor

from slicescan.ops.backends.cuda import pixels


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
