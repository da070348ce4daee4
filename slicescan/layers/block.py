"""The residual blocks of XYScanNet: scanners and feed-forward layers, each behind a norm."""

from collections.abc import Callable

from torch import Tensor, nn

from slicescan.layers.feedforward import GatedDconvFFN
from slicescan.layers.hooks import is_plain
from slicescan.layers.norm import LayerNorm2d, add_and_norm, with_body
from slicescan.layers.vssm import InterVSSM, IntraVSSM

Layer = Callable[[int], nn.Module]
Branch = tuple[nn.Module, nn.Module]


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
        x, branch = self.unsummed([x])
        return x + branch

    def unsummed(self, terms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Refine a map, or the sum of two, up to the last residual: its input, and its branch.

        ``terms`` is emptied, so that no caller keeps them.
        """
        x, normed = _enter(terms, self.norm1_ffn)
        x, normed = add_and_norm(x, self.ffn1(normed), self.norm2_ffn)
        return x, self.ffn2(normed)

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
        x, branch = self.unsummed([x])
        return x + branch

    def unsummed(self, terms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Refine a map, or the sum of two, up to the last residual: its input, and its branch.

        ``terms`` is emptied, so that no caller keeps them.
        """
        x, normed = _enter(terms, self.norm1_ssm)
        x, normed = add_and_norm(x, self.intra(normed), self.norm1_ffn)
        x, normed = add_and_norm(x, self.ffn1(normed), self.norm2_ssm)
        x, normed = add_and_norm(x, self.inter(normed), self.norm2_ffn)
        return x, self.ffn2(normed)

    def branches(self) -> list[Branch]:
        """Norm and layer of every residual, in order: what streaming runs one by one."""
        scan, feed = (self.norm1_ssm, self.intra), (self.norm1_ffn, self.ffn1)
        return [scan, feed, (self.norm2_ssm, self.inter), (self.norm2_ffn, self.ffn2)]


def one_by_one(blocks: nn.Module, x: Tensor) -> Tensor:
    """What ``blocks(x)`` is; the sum that ends a block is made together with the norm that begins the next.

    Blocks of other classes, and those that a hook looks at, are called.

    Args:
        blocks: Blocks of any kind.
        x: ``(b, dim, h, w)``.

    Example:
        >>> import torch
        >>> blocks, x = nn.Sequential(FeedForwardBlock(8), ScanBlock(8)), torch.rand(1, 8, 3, 5)
        >>> torch.equal(one_by_one(blocks, x), blocks(x))
        True
    """
    if not is_plain(blocks, nn.Sequential):
        return blocks(x)
    terms = [x]
    del x
    for block in blocks:
        if is_plain(block, FeedForwardBlock) or is_plain(block, ScanBlock):
            terms += block.unsummed(terms)
        else:
            terms = [block(_sum(terms))]
    return _sum(terms)


def _sum(terms: list[Tensor]) -> Tensor:
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _enter(terms: list[Tensor], norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The sum of one or two terms, and its norm; the terms are let go."""
    if len(terms) == 1:
        x = terms.pop()
        return x, norm(x)
    branch, x = terms.pop(), terms.pop()
    return add_and_norm(x, branch, norm)
