"""The residual blocks of XYScanNet: scanners and feed-forward layers, each behind a norm."""

from collections.abc import Callable

from torch import Tensor, nn

from slicescan.layers.feedforward import GatedDconvFFN
from slicescan.layers.hooks import is_plain
from slicescan.layers.norm import LayerNorm2d, with_body
from slicescan.layers.residual import Branch, Residual
from slicescan.layers.vssm import InterVSSM, IntraVSSM

Layer = Callable[[int], nn.Module]


class FeedForwardBlock(nn.Module):
    """Two feed-forward layers: the encoder block of XYScanNet.

    ``x = x + ffn1(norm1_ffn(x))``, ``x = x + ffn2(norm2_ffn(x))``.

    Args:
        dim: Channels.
        ffn: Makes a feed-forward layer of a given width.
        norm: Makes a norm of a given width.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        XYScanNet (arXiv 2412.10338), Figure 2.

    Example:
        >>> import torch
        >>> FeedForwardBlock(8)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    def __init__(self, dim: int, *, ffn: Layer = GatedDconvFFN, norm: Layer = LayerNorm2d):
        super().__init__()
        self.norm1_ffn, self.norm2_ffn = with_body(norm(dim)), with_body(norm(dim))
        self.ffn1, self.ffn2 = ffn(dim), ffn(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Refine ``(b, dim, h, w)``."""
        return Residual(x).refined(self.branches()).total()

    def branches(self) -> list[Branch]:
        """Norm and layer of every residual, in order: what streaming runs one by one."""
        return [(self.norm1_ffn, self.ffn1), (self.norm2_ffn, self.ffn2)]


class ScanBlock(nn.Module):
    """Scan inside the slices, feed forward, scan across the slices, feed forward: the decoder block of XYScanNet.

    ``x = x + intra(norm1_ssm(x))``, ``x = x + ffn1(norm1_ffn(x))``, ``x = x + inter(norm2_ssm(x))``,
    ``x = x + ffn2(norm2_ffn(x))``.

    Args:
        dim: Channels.
        intra: Makes the first scanner of a given width.
        inter: Makes the second scanner of a given width.
        ffn: Makes a feed-forward layer of a given width.
        norm: Makes a norm of a given width.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        XYScanNet (arXiv 2412.10338), Figure 2.

    Example:
        >>> import torch
        >>> ScanBlock(8, inter=IntraVSSM)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    def __init__(
        self,
        dim: int,
        *,
        intra: Layer = IntraVSSM,
        inter: Layer = InterVSSM,
        ffn: Layer = GatedDconvFFN,
        norm: Layer = LayerNorm2d,
    ):
        super().__init__()
        self.norm1_ssm, self.norm2_ssm = with_body(norm(dim)), with_body(norm(dim))
        self.intra, self.inter = intra(dim), inter(dim)
        self.norm1_ffn, self.norm2_ffn = with_body(norm(dim)), with_body(norm(dim))
        self.ffn1, self.ffn2 = ffn(dim), ffn(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Refine ``(b, dim, h, w)``."""
        return Residual(x).refined(self.branches()).total()

    def branches(self) -> list[Branch]:
        """Norm and layer of every residual, in order: what streaming runs one by one."""
        scan, feed = (self.norm1_ssm, self.intra), (self.norm1_ffn, self.ffn1)
        return [scan, feed, (self.norm2_ssm, self.inter), (self.norm2_ffn, self.ffn2)]


def one_by_one(blocks: nn.Module, x: Tensor | list[Tensor]) -> Tensor:
    """What ``blocks(x)`` is; the sum that ends a block is made together with the norm that begins the next.

    Blocks of other classes, and those that a hook looks at, are called.

    Args:
        blocks: Blocks of any kind.
        x: ``(b, dim, h, w)``; or a list of nothing else, which is emptied, so that the map is freed as early as may be.

    Example:
        >>> import torch
        >>> blocks, x = nn.Sequential(FeedForwardBlock(8), ScanBlock(8)), torch.rand(1, 8, 3, 5)
        >>> torch.equal(one_by_one(blocks, x), blocks(x))
        True
    """
    given = x if isinstance(x, list) else [x]
    del x
    if not is_plain(blocks, nn.Sequential):
        return blocks(given.pop())
    residual = Residual(given.pop())
    for block in blocks:
        if is_plain(block, FeedForwardBlock) or is_plain(block, ScanBlock):
            residual.refined(block.branches())
        else:
            residual = Residual(block(residual.total()))
    return residual.total()
