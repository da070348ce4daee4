"""IntraVSSM, InterVSSM: the gated shell around a scanner."""

from collections.abc import Iterable

from torch import Tensor, nn

from slicescan.layers.depthwise import DepthwiseConv2d
from slicescan.layers.halves import HalvesScanner
from slicescan.layers.hooks import are_weights, is_bare_product, is_plain, recomputes
from slicescan.layers.inter_scan import InterScan
from slicescan.layers.memory_order import channels_last, ordered_like
from slicescan.layers.pointwise import PointwiseConv2d
from slicescan.layers.slice_scan import SliceScan2D
from slicescan.layers.strips import Strip, Treat
from slicescan.ops.depthwise_conv import conv_halves
from slicescan.ops.pointwise_conv import add_pointwise_conv, adds_product, gated_pointwise_conv, widened_conv
from slicescan.ops.recompute import gated_projection, widened
from slicescan.ops.silu_gate import silu_gate


class _GatedShell(HalvesScanner):
    """``f, gate = halves(dwconv(proj_in(x)))``, ``y = proj_out(silu(gate) * scanner(f))``.

    The scanner is the class that follows in the bases, so that its parameters sit beside these, as published.
    """

    reach = 1

    def __init__(self, dim: int, inner: int, bias: bool):
        nn.Module.__init__(self)  # the scanner's parameters are drawn after these
        self.recompute = True
        self.proj_in = PointwiseConv2d(dim, 2 * inner, bias=bias)
        self.dwconv = DepthwiseConv2d(2 * inner, bias=bias)
        self.proj_out = PointwiseConv2d(inner, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return ordered_like(self._narrow(*self._gate_and_scanned(x)), x)

    def adds_to(self, total: Tensor) -> bool:
        """Whether a call may be :meth:`add_to`, which saves passes over the map."""
        known = is_plain(self, IntraVSSM) or is_plain(self, InterVSSM)
        return known and adds_product(total) and is_bare_product(self.proj_out)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add to a map, in its place, what the layer makes of ``x``; nothing is recorded for gradients."""
        add_pointwise_conv(total, silu_gate(*self._gate_and_scanned(x)), self.proj_out.weight)

    def _gate_and_scanned(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gate of what is scanned, and the scanned map."""
        halves = self._widen(x)
        scanned = self._mixed(halves.pop(0))  # nobody else has it, so that it may be freed inside
        return halves.pop(), scanned

    def _widen(self, x: Tensor) -> list[Tensor]:
        """What is scanned, and its gate."""
        x = channels_last(x)
        if self.recompute and recomputes([x], [self.proj_in], self.dwconv):
            return list(widened(x, *[(conv.weight, conv.bias) for conv in (self.proj_in, self.dwconv)]))
        if x.is_cpu and are_weights([self.proj_in], self.dwconv):
            wide = widened_conv(x, *[(conv.weight, conv.bias) for conv in (self.proj_in, self.dwconv)])
            return list(wide.chunk(2, 1))
        if is_plain(self.dwconv, DepthwiseConv2d):
            return conv_halves(self.proj_in(x), self.dwconv.weight, self.dwconv.bias)
        return list(self.dwconv(self.proj_in(x)).chunk(2, 1))

    def _narrow(self, gate: Tensor, scanned: Tensor) -> Tensor:
        if self.recompute and recomputes([gate, scanned], [self.proj_out]):
            return gated_projection(gate, scanned, (self.proj_out.weight, self.proj_out.bias))
        if gate.is_cpu and are_weights([self.proj_out]):
            return gated_pointwise_conv(gate, scanned, (self.proj_out.weight, self.proj_out.bias))
        return self.proj_out(silu_gate(gate, scanned))

    def _scanned(self, x: Tensor) -> Tensor:
        """The first half of what ``_widen`` makes, and nothing of the other."""
        inner = self.proj_out.in_channels
        bias, after = (None if conv.bias is None else conv.bias[:inner] for conv in (self.proj_in, self.dwconv))
        first, around = (self.proj_in.weight[:inner], bias), (self.dwconv.weight[:inner], after)
        return widened_conv(channels_last(x), first, around)

    def stream(self, pieces: Iterable[tuple[Strip, Tensor]]) -> Treat:
        scan = super().stream((strip.alone(), strip.inner(self._scanned(x))) for strip, x in pieces)

        def treat(strip: Strip, x: Tensor) -> Tensor:
            f, gate = (strip.inner(half) for half in self._widen(x))
            return ordered_like(self._narrow(gate, scan(strip.alone(), f)), x)

        return treat


class IntraVSSM(_GatedShell, SliceScan2D):
    """A slice scan of one projection of the input, gated by another: pixels learn from their row and column.

    ``f, gate = halves(dwconv(proj_in(x)))``, ``y = proj_out(silu(gate) * slice_scan(f))``.

    Args:
        dim: Channels.
        expand: Width of one half relative to ``dim``, rounded down; the width must be even.
        state: Size of the state of each inner channel.
        bidirectional: As in :class:`SliceScan2D`.
        shared: As in :class:`SliceScan2D`.
        bias: Whether the convolutions have a bias.

    Attributes:
        recompute: Whether gradients of large maps on a GPU compute the maps around the scan anew instead of keeping
            them. True; set it to False to keep them. The scan has a switch of its own, ``mamba.recompute``.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        XYScanNet (arXiv 2412.10338), Eq. 5. Differs, as their code does: 1x1 convolutions around the scan, no residual.

    Example:
        >>> import torch
        >>> IntraVSSM(8)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    def __init__(
        self,
        dim: int,
        *,
        expand: float = 1.0,
        state: int = 16,
        bidirectional: bool = False,
        shared: bool = True,
        bias: bool = False,
    ):
        inner = int(dim * expand)
        super().__init__(dim, inner, bias)
        self._add_scanner(inner, state, bidirectional, shared, bias)


class InterVSSM(_GatedShell, InterScan):
    """A scan across slices of one projection of the input, gated by another: rows and columns learn from each other.

    ``f, gate = halves(dwconv(proj_in(x)))``, ``y = proj_out(silu(gate) * inter_scan(f))``.

    Args:
        dim: Channels.
        expand: Width of one half relative to ``dim``, rounded down; the width must be even.
        state: Size of the state of each inner channel.
        compression: As in :class:`InterScan`.
        bias: Whether the convolutions have a bias.

    Attributes:
        recompute: Whether gradients of large maps on a GPU compute the maps around the scan anew instead of keeping
            them. True; set it to False to keep them. The scan has a switch of its own, ``mamba.recompute``.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        XYScanNet (arXiv 2412.10338), Eq. 5. Differs, as their code does: 1x1 convolutions around the scan, no residual.

    Example:
        >>> import torch
        >>> InterVSSM(8, compression=0.25)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    def __init__(
        self,
        dim: int,
        *,
        expand: float = 1.0,
        state: int = 16,
        compression: float | None = None,
        bias: bool = False,
    ):
        inner = int(dim * expand)
        super().__init__(dim, inner, bias)
        self._add_scanner(inner, state, compression, bias)
