"""Fusion of the levels of an encoder: what one level's skip connection takes from the other levels."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.layers.memory_order import ordered_like
from slicescan.layers.strips import ALIGNMENT, Strip, Treat

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
        self.conv = nn.Conv2d(dim, dim, 1, bias=bias)
        self.conv_n1 = nn.Conv2d(other_dims[0], dim, 1, bias=bias)
        self.conv_n2 = nn.Conv2d(other_dims[1], dim, 1, bias=bias)
        self.fuse_out1 = nn.Conv2d(2 * dim, dim, 1, bias=bias)

    def forward(self, cur: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Fuse ``others`` into ``cur``."""
        n1, n2 = others
        x = self.conv(cur)
        target = _distribution(x)
        y = self._gated(self.conv_n1(_nearest(n1, cur)), *target) + self._gated(
            self.conv_n2(_nearest(n2, cur)), *target
        )
        return ordered_like(self.fuse_out1(torch.cat([x, y], 1)), cur)

    def _gated(self, n: Tensor, p: Tensor, log_p: Tensor) -> Tensor:
        kl = _divergence(n, p, log_p)
        if self.gate == "sample":
            kl = kl.mean((1, 2, 3), keepdim=True)
        elif self.gate == "tensor":
            kl = kl.mean()
        return torch.sigmoid(kl).to(n.dtype) * n

    def stream(self, pieces: Iterable[tuple[Strip, Tensor, Sequence[Tensor]]]) -> Treat:
        """Find the gates in one pass over ``pieces``, ``(strip, cur, others)``; then fuse strips."""
        if self.gate == "pixel":
            return lambda strip, cur, others: self(cur, others)
        convs, total, count = (self.conv_n1, self.conv_n2), None, 0
        for _, cur, others in pieces:
            x = self.conv(cur)
            target = _distribution(x)
            sums = [
                _divergence(conv(_nearest(n, cur)), *target).sum((1, 2, 3), keepdim=True)
                for conv, n in zip(convs, others, strict=True)
            ]
            total = sums if total is None else [old + new for old, new in zip(total, sums, strict=True)]
            count += x[0].numel()
        assert total is not None
        kls = [kl / count if self.gate == "sample" else (kl / count).mean() for kl in total]
        gates = [torch.sigmoid(kl).to(x.dtype) for kl in kls]

        def treat(_: Strip, cur: Tensor, others: Sequence[Tensor]) -> Tensor:
            p, q = (gate * conv(_nearest(n, cur)) for gate, conv, n in zip(gates, convs, others, strict=True))
            return self.fuse_out1(torch.cat([self.conv(cur), p + q], 1))

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
        return ordered_like(self.conv(torch.cat([_nearest(level, target) for level in levels], 1)), target)

    def stream(self, pieces: Iterable[tuple[Strip, Tensor, Sequence[Tensor]]]) -> Treat:
        """Fuse strips, ``(strip, cur, others)``; nothing of the whole image is needed."""
        level = self.level
        return lambda strip, cur, others: strip.inner(self([*others[:level], cur, *others[level:]]))

    def extra_repr(self) -> str:
        """Which level's size the output has, for ``repr``."""
        return f"level={self.level}"


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _distribution(x: Tensor) -> tuple[Tensor, Tensor]:
    """``sigmoid(x)`` and its logarithm."""
    return torch.sigmoid(_wide(x)), F.logsigmoid(_wide(x))


def _divergence(n: Tensor, p: Tensor, log_p: Tensor) -> Tensor:
    return p * (log_p - F.logsigmoid(_wide(n)))


def _nearest(x: Tensor, target: Tensor) -> Tensor:
    size = target.shape[2:]
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="nearest")


def _main(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(main=nn.Sequential(*modules)))
