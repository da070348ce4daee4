"""Fusion of the levels of an encoder: what one level's skip connection takes from the other levels."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from slicescan.layers.memory_order import ordered_like
from slicescan.layers.pointwise import PointwiseConv2d
from slicescan.layers.strips import ALIGNMENT, Strip, Treat
from slicescan.ops.divergence import (
    beside,
    divergence_gates,
    divergence_sums,
    elementwise_divergences,
    gated_by_divergence,
    nearest,
)
from slicescan.ops.library import watched

Gate = Literal["sample", "tensor", "pixel"]


class KLFF(nn.Module):
    """Add to a level what the other two know, each weighted by how much it diverges from this level.

    With ``X, P, Q`` the three maps at this level's size and width::

        kl(N, X) = mean( sigmoid(X) * (log sigmoid(X) - log sigmoid(N)) )
        y = fuse_out1( cat( X, sigmoid(kl(P, X)) * P + sigmoid(kl(Q, X)) * Q ) )

    Args:
        dim: Channels of the current level, and of the output.
        other_dims: Channels of the two other levels.
        gate: What the mean runs over. ``"sample"``: each image by itself. ``"tensor"``: the whole batch, as in the
            published training; an image then depends on its neighbours in the batch. ``"pixel"``: no mean, one gate per
            element. The first two agree for a batch of one.
        bias: Whether the four convolutions have a bias.

    Shape:
        ``cur`` ``(b, dim, h, w)`` and two maps of any size to ``(b, dim, h, w)``; the two are resized by nearest
        neighbour.

    Raises:
        ValueError: There are not two other levels, or ``gate`` is none of the three.

    Source:
        XYScanNet (arXiv 2412.10338), Eq. 6. Differs, as their code does: one scalar gate instead of an element-wise
        one, log-sigmoid instead of the logarithm of features, the current level first in the concatenation.

    Example:
        >>> fuse = KLFF(8, (16, 32))
        >>> fuse(torch.rand(1, 8, 4, 8), [torch.rand(1, 16, 2, 4), torch.rand(1, 32, 1, 2)]).shape
        torch.Size([1, 8, 4, 8])
    """

    reach = 0

    def __init__(self, dim: int, other_dims: Sequence[int], *, gate: Gate = "sample", bias: bool = False):
        super().__init__()
        if len(other_dims) != 2:
            raise ValueError(f"KLFF fuses one level with two others; other_dims has {len(other_dims)} entries")
        if gate not in get_args(Gate):
            raise ValueError(f"gate is one of {', '.join(map(repr, get_args(Gate)))}; got {gate!r}")
        self.gate = gate
        self.conv = PointwiseConv2d(dim, dim, bias=bias)
        self.conv_n1 = PointwiseConv2d(other_dims[0], dim, bias=bias)
        self.conv_n2 = PointwiseConv2d(other_dims[1], dim, bias=bias)
        self.fuse_out1 = PointwiseConv2d(2 * dim, dim, bias=bias)

    def forward(self, cur: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Fuse ``others`` into ``cur``."""
        return ordered_like(self.fuse_out1(self._beside(cur, others)), cur)

    def _beside(self, cur: Tensor, others: Sequence[Tensor]) -> Tensor:
        """``cat(X, y)``; the maps that it is made of, as large themselves, are gone when it is convolved."""
        x, maps = self._projected(cur, others)
        if self.gate != "pixel":
            return gated_by_divergence(x, maps, per_image=self.gate == "sample")
        maps = [nearest(n, x) for n in maps]
        gates = map(torch.sigmoid, elementwise_divergences(x, maps))
        p, q = (gate.to(n.dtype) * n for gate, n in zip(gates, maps, strict=True))
        return torch.cat([x, p + q], 1)

    def _projected(self, cur: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """``X``, and ``P`` and ``Q``; where they are smaller than ``X``, their pixels are not repeated yet.

        A 1x1 convolution of repeated pixels repeats its results, so it comes first, except where the network is
        counted or written to a file as it is defined.
        """
        defined = watched()
        maps = [
            conv(nearest(n, cur) if defined or n.shape[2] > cur.shape[2] or n.shape[3] > cur.shape[3] else n)
            for conv, n in zip((self.conv_n1, self.conv_n2), others, strict=True)
        ]
        return self.conv(cur), maps

    def stream(self, pieces: Iterable[tuple[Strip, Tensor, Sequence[Tensor]]]) -> Treat:
        """Find the gates in one pass over ``pieces``, ``(strip, cur, others)``; then fuse strips."""
        if self.gate == "pixel":
            return lambda strip, cur, others: self(cur, others)
        total, count = None, 0
        for _, cur, others in pieces:
            x, maps = self._projected(cur, others)
            sums = divergence_sums(x, maps)
            total = sums if total is None else total + sums
            count += x[0].numel()
        assert total is not None
        gates = divergence_gates(total / count, per_image=self.gate == "sample")

        def treat(_: Strip, cur: Tensor, others: Sequence[Tensor]) -> Tensor:
            return self.fuse_out1(beside(*self._projected(cur, others), gates))

        return treat

    def extra_repr(self) -> str:
        """What the gate is shared by, for ``repr``."""
        return f"gate={self.gate!r}"


class AFF(nn.Module):
    """Fuse three levels by convolutions on their concatenation, finest level first.

    ``y = conv3x3(relu(conv1x1(cat(l1, l2, l3))))``, both convolutions with bias.

    Args:
        dims: Channels of the three levels.
        out_dim: Channels of the output.
        level: Index of the map whose size the output has; by default the first with ``out_dim`` channels, else 0.

    Shape:
        Maps ``(b, dims[i], h_i, w_i)`` of any sizes to ``(b, out_dim, h, w)``; the others are resized to that size by
        nearest neighbour.

    Source:
        Cho et al. 2021 (MIMO-UNet), asymmetric feature fusion, Eq. 5. Differs: it does the resizing itself.

    Example:
        >>> fuse = AFF((8, 16, 32), 16)
        >>> fuse([torch.rand(1, 8, 4, 8), torch.rand(1, 16, 2, 4), torch.rand(1, 32, 1, 2)]).shape
        torch.Size([1, 16, 2, 4])
    """

    reach = ALIGNMENT  # one row, but coarser maps are cut with it

    def __init__(self, dims: Sequence[int], out_dim: int, *, level: int | None = None):
        super().__init__()
        if level is None:
            level = list(dims).index(out_dim) if out_dim in dims else 0
        self.level = level
        self.conv = nn.Sequential(
            _main(nn.Conv2d(sum(dims), out_dim, 1), nn.ReLU()),
            _main(nn.Conv2d(out_dim, out_dim, 3, padding=1)),
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Fuse ``levels`` at the size of one of them."""
        target = levels[self.level]
        return ordered_like(self.conv(torch.cat([nearest(level, target) for level in levels], 1)), target)

    def stream(self, pieces: Iterable[tuple[Strip, Tensor, Sequence[Tensor]]]) -> Treat:
        """Fuse strips, ``(strip, cur, others)``; nothing of the whole image is needed."""
        level = self.level
        return lambda strip, cur, others: strip.inner(self([*others[:level], cur, *others[level:]]))

    def extra_repr(self) -> str:
        """Which level's size the output has, for ``repr``."""
        return f"level={self.level}"


def _main(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(main=nn.Sequential(*modules)))
