"""Change of resolution between the levels of a U-Net: by interpolation, or by moving pixels into channels."""

import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.layers.memory_order import ordered_like
from slicescan.ops.twice import twice


class _Half(nn.Module):
    """Bilinear resize by 1/2; half-pixel centres, no antialiasing. Odd sizes are rounded up, so that none vanishes."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        return F.interpolate(x, ((h + 1) // 2, (w + 1) // 2), mode="bilinear", align_corners=False)


class _Twice(nn.Module):
    """Bilinear resize by 2; half-pixel centres."""

    def forward(self, x: Tensor) -> Tensor:
        return twice(x)


class Downsample(nn.Module):
    """Halve the resolution by bilinear interpolation, then a 3x3 convolution changes the width.

    For even sizes the interpolation is the mean of 2x2 pixels.

    Args:
        dim: Channels.
        out_dim: Channels of the output, ``2 * dim`` by default.

    Shape:
        ``(b, dim, h, w)`` to ``(b, out_dim, ceil(h / 2), ceil(w / 2))``.

    Source:
        XYScanNet (arXiv 2412.10338), the code; the paper does not say.

    Example:
        >>> import torch
        >>> Downsample(8)(torch.rand(1, 8, 6, 5)).shape
        torch.Size([1, 16, 3, 3])
    """

    def __init__(self, dim: int, out_dim: int | None = None):
        super().__init__()
        out_dim = 2 * dim if out_dim is None else out_dim
        self.body = nn.Sequential(_Half(), nn.Conv2d(dim, out_dim, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Shrink ``(b, dim, h, w)``."""
        return self.body(x)


class Upsample(nn.Module):
    """Double the resolution by bilinear interpolation, then a 3x3 convolution changes the width.

    Args:
        dim: Channels.
        out_dim: Channels of the output, ``dim // 2`` by default.

    Shape:
        ``(b, dim, h, w)`` to ``(b, out_dim, 2 h, 2 w)``.

    Source:
        XYScanNet (arXiv 2412.10338), the code; the paper does not say.

    Example:
        >>> import torch
        >>> Upsample(8)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 4, 6, 10])
    """

    def __init__(self, dim: int, out_dim: int | None = None):
        super().__init__()
        out_dim = dim // 2 if out_dim is None else out_dim
        self.body = nn.Sequential(_Twice(), nn.Conv2d(dim, out_dim, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge ``(b, dim, h, w)``."""
        return self.body(x)


class ShuffleDownsample(nn.Module):
    """Halve the resolution without loss: a 3x3 convolution narrows, then each 2x2 square of pixels becomes one.

    Args:
        dim: Channels, even.
        out_dim: Channels of the output, a multiple of 4, ``2 * dim`` by default.

    Shape:
        ``(b, dim, h, w)`` to ``(b, out_dim, ceil(h / 2), ceil(w / 2))``; of an odd size the last row or column counts
        twice.

    Source:
        Shi et al. 2016, Eq. 4, the other way round; Zamir et al. 2022 (Restormer), Figure 2.

    Example:
        >>> import torch
        >>> ShuffleDownsample(8)(torch.rand(1, 8, 6, 5)).shape
        torch.Size([1, 16, 3, 3])
    """

    def __init__(self, dim: int, out_dim: int | None = None):
        super().__init__()
        out_dim = 2 * dim if out_dim is None else out_dim
        if out_dim % 4:
            raise ValueError(f"out_dim, 2 * dim by default, must be a multiple of 4, got {out_dim}")
        self.body = nn.Sequential(nn.Conv2d(dim, out_dim // 4, 3, padding=1, bias=False), nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """Shrink ``(b, dim, h, w)``."""
        h, w = x.shape[2:]
        if h % 2 or w % 2:
            x = F.pad(x, (0, w % 2, 0, h % 2), mode="replicate")
        return ordered_like(self.body(x), x)


class ShuffleUpsample(nn.Module):
    """Double the resolution: a 3x3 convolution makes four values for each of the new channels, one for each new pixel.

    Args:
        dim: Channels.
        out_dim: Channels of the output, ``dim // 2`` by default.

    Shape:
        ``(b, dim, h, w)`` to ``(b, out_dim, 2 h, 2 w)``.

    Source:
        Shi et al. 2016, Eq. 4; Zamir et al. 2022 (Restormer), Figure 2.

    Example:
        >>> import torch
        >>> ShuffleUpsample(8)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 4, 6, 10])
    """

    def __init__(self, dim: int, out_dim: int | None = None):
        super().__init__()
        out_dim = dim // 2 if out_dim is None else out_dim
        self.body = nn.Sequential(nn.Conv2d(dim, 4 * out_dim, 3, padding=1, bias=False), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge ``(b, dim, h, w)``."""
        return ordered_like(self.body(x), x)
