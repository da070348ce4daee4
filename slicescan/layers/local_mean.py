"""Means over a window: what a network trained on small crops should see of a large image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.layers.memory_order import ordered_like


class LocalMean2d(nn.Module):
    """Average every channel over a square window around each position, or over the whole map.

    A network that was trained on crops and averages whole maps meets other statistics in a large image than those it
    learnt; a window of the size that it was trained with brings them back. Windows stay inside the map: near its edge
    a position has the mean of the nearest whole window. Running sums make the cost independent of the window.

    Args:
        window: Side of the window; None for the whole map.

    Shape:
        ``(b, c, h, w)`` to the same, but along an axis that the window covers there is one position, which stands for
        all: ``(b, c, 1, 1)`` for the whole map. The result broadcasts against the input.

    Raises:
        ValueError: The window is not positive.

    Source:
        Chu et al. 2022 (arXiv 2112.04491), test-time local converter. Differs: one axis after the other.

    Example:
        >>> LocalMean2d(2)(torch.tensor([[[[1.0, 3.0, 5.0]]]]))
        tensor([[[[2., 4., 4.]]]])
        >>> LocalMean2d()(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 1, 1])
    """

    def __init__(self, window: int | None = None):
        super().__init__()
        if window is not None and window < 1:
            raise ValueError(f"window must be positive, or None for the whole map, got {window}")
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Average ``(b, c, h, w)``."""
        wide = x if x.dtype == torch.float64 else x.float()
        for axis in (2, 3):
            wide = _mean(wide, self.window, axis)
        return ordered_like(wide.to(x.dtype), x)

    def extra_repr(self) -> str:
        """The window, for ``repr``."""
        return f"window={self.window}"


def _mean(x: Tensor, window: int | None, axis: int) -> Tensor:
    """Means along one axis: of all positions, or of the windows that lie inside, the outermost ones repeated."""
    size = x.shape[axis]
    mean = x.mean(axis, keepdim=True)
    if window is None or window >= size:
        return mean
    sums = F.pad((x - mean).cumsum(axis), (0, 0, 1, 0) if axis == 2 else (1, 0))  # sums of deviations stay small
    means = mean + (sums.narrow(axis, window, size - window + 1) - sums.narrow(axis, 0, size - window + 1)) / window
    before, after = (window - 1) // 2, window // 2
    return F.pad(means, (0, 0, before, after) if axis == 2 else (before, after, 0, 0), mode="replicate")
