"""The frame of both scanners of XYScanNet: one half of the channels for rows, the other for columns."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.layers.hooks import is_pointwise
from slicescan.layers.memory_order import as_image, as_map, channels_last, ordered_like
from slicescan.layers.pointwise import PointwiseConv2d
from slicescan.layers.strips import Strip, Treat
from slicescan.ops.library import side_by_side, watched

ScanStrip = Callable[[Strip, Tensor, Tensor], tuple[Tensor, Tensor]]


class HalvesScanner(nn.Module):
    """``y = fuse_out(cat(scan(halves(conv_input(x)))))``; a subclass says what ``scan`` does to the two halves."""

    reach = 0

    def _add_projections(self, dim: int, bias: bool) -> None:
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be even, one half for rows and one for columns; got {dim}")
        self.dim = dim
        self.conv_input = PointwiseConv2d(dim, dim, bias=bias)
        self.fuse_out = PointwiseConv2d(dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scan ``(b, dim, h, w)``."""
        return ordered_like(self._mixed(x), x)

    def _mixed(self, x: Tensor) -> Tensor:
        halves = self._halves(x)
        del x  # the halves are other maps
        return self._fused(*halves)

    def _fused(self, first: Tensor, second: Tensor) -> Tensor:
        """What ``fuse_out`` makes of both halves, ``(b, dim, h, w)``."""
        return self.fuse_out(as_image(self._scan_together(first, second)))

    def _scan_together(self, first: Tensor, second: Tensor) -> Tensor:
        """What ``scan`` makes of both halves, side by side, ``(b, h, w, dim)``."""
        return torch.cat(self.scan(first, second), -1)

    def _halves(self, x: Tensor) -> tuple[Tensor, ...]:
        return pointwise(self.conv_input, x).chunk(2, -1)  # b h w d

    def scan(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Scan both halves, ``(b, h, w, dim / 2)`` each."""
        raise NotImplementedError

    def stream(self, pieces: Iterable[tuple[Strip, Tensor]]) -> Treat:
        """Treat strips in order, see :mod:`slicescan.layers.strips`."""
        scan = self.scan_strips(x for _, x in pieces)

        def treat(strip: Strip, x: Tensor) -> Tensor:
            return ordered_like(self.fuse_out(as_image(torch.cat(scan(strip, *self._halves(x)), -1))), x)

        return treat

    def scan_strips(self, maps: Iterable[Tensor]) -> ScanStrip:
        """What stands for ``scan`` on strips in order; ``maps`` are all strips of the input, for one pass."""
        raise NotImplementedError


def pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of ``(b, c, h, w)`` as a map ``(b, h, w, d)``.

    A half of a wider map, whose pixels lie apart, is read in place on a GPU in half precision, by a matrix product; a
    convolution would copy it first. In float32 it stays the convolution, whose arithmetic users choose separately.
    """
    if _in_place(conv, x):
        return F.linear(as_map(x), conv.weight.flatten(1), conv.bias)
    return as_map(conv(channels_last(x)))


def _in_place(conv: nn.Conv2d, x: Tensor) -> bool:
    if not x.is_cuda or x.stride(1) != 1 or side_by_side(x):
        return False
    if x.dtype.itemsize != 2 or watched() or not is_pointwise(conv):
        return False
    return x.dtype == conv.weight.dtype or torch.is_autocast_enabled("cuda")
