"""Attention between channels, whose cost grows with the number of pixels and not with its square."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.layers.memory_order import ordered_like


class MDTA(nn.Module):
    """Let every channel attend to the other channels of its head by how alike their maps are.

    With ``q, k, v`` from 1x1 convolutions followed by 3x3 ones on each channel, one row a channel, one column a pixel::

        y = project_out( softmax( temperature * q/|q| (k/|k|)^T ) v )

    Args:
        dim: Channels, a multiple of ``heads``.
        heads: Groups of channels that attend among themselves; each has a temperature.
        bias: Whether the convolutions have a bias.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Raises:
        ValueError: ``dim`` is no multiple of ``heads``.

    Source:
        Zamir et al. 2022 (Restormer), Eq. 1. Differs, as their code does: the temperature multiplies.

    Example:
        >>> MDTA(8, heads=2)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    def __init__(self, dim: int, *, heads: int = 1, bias: bool = False):
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within ``(b, dim, h, w)``."""
        b, c, h, w = x.shape
        q, k, v = self.qkv_dwconv(self.qkv(x)).reshape(b, 3, self.heads, c // self.heads, h * w).unbind(1)
        alike = _unit(q) @ _unit(k).transpose(-2, -1)  # b heads channels channels
        attention = (alike * self.temperature).softmax(-1).to(v.dtype)
        y = (attention @ v).reshape(b, c, h, w)
        return ordered_like(self.project_out(y), x)

    def extra_repr(self) -> str:
        """Heads, for ``repr``; the sizes are those of the convolutions."""
        return f"heads={self.heads}"


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1; the squares of a whole map leave the range of float16, so they are summed in float32."""
    wide = x if x.dtype == torch.float64 else x.float()
    return F.normalize(wide, dim=-1, eps=1e-12).to(x.dtype)
