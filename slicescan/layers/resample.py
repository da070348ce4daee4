"""Change of resolution between the levels of a U-Net: resize first, convolve after."""

import torch.nn.functional as F
from torch import Tensor, nn


class _Bilinear(nn.Module):
    """Bilinear resize by 1/2 (rounded up, so that no axis vanishes) or 2; half-pixel centres, no antialiasing."""

    def __init__(self, double: bool):
        super().__init__()
        self.double = double

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        size = (2 * h, 2 * w) if self.double else ((h + 1) // 2, (w + 1) // 2)
        return F.interpolate(x, size, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"scale={2 if self.double else 0.5}"


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
        >>> Downsample(8)(torch.rand(1, 8, 6, 5)).shape
        torch.Size([1, 16, 3, 3])
    """

    def __init__(self, dim: int, out_dim: int | None = None):
        super().__init__()
        out_dim = 2 * dim if out_dim is None else out_dim
        self.body = nn.Sequential(_Bilinear(double=False), nn.Conv2d(dim, out_dim, 3, padding=1, bias=False))

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
        >>> Upsample(8)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 4, 6, 10])
    """

    def __init__(self, dim: int, out_dim: int | None = None):
        super().__init__()
        out_dim = dim // 2 if out_dim is None else out_dim
        self.body = nn.Sequential(_Bilinear(double=True), nn.Conv2d(dim, out_dim, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge ``(b, dim, h, w)``."""
        return self.body(x)
