"""The frame of both scanners of XYScanNet: one half of the channels for rows, the other for columns."""

import torch
from torch import Tensor, nn

from slicescan.layers.memory_order import as_image, as_map, channels_last, ordered_like


class HalvesScanner(nn.Module):
    """``y = fuse_out(cat(scan(halves(conv_input(x)))))``; a subclass says what ``scan`` does to the two halves."""

    def _add_projections(self, dim: int, bias: bool) -> None:
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be even, one half for rows and one for columns; got {dim}")
        self.dim = dim
        self.conv_input = nn.Conv2d(dim, dim, 1, bias=bias)
        self.fuse_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scan ``(b, dim, h, w)``."""
        first, second = as_map(self.conv_input(channels_last(x))).chunk(2, -1)  # b h w d
        y = torch.cat(self.scan(first, second), -1)
        return ordered_like(self.fuse_out(as_image(y)), x)

    def scan(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Scan both halves, ``(b, h, w, dim / 2)`` each."""
        raise NotImplementedError
