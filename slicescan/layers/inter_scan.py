"""InterScan: scan from slice to slice, gate each slice."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from slicescan.layers.halves import HalvesScanner, ScanStrip, pointwise
from slicescan.layers.hooks import hooked, is_pointwise
from slicescan.layers.mamba import Mamba
from slicescan.layers.memory_order import as_image
from slicescan.ops.library import looked_at
from slicescan.ops.slice_gate import gate_slices, has_slice_kernels


class InterScan(HalvesScanner):
    """Pool every row and every column to one descriptor, scan the descriptors in order, gate each slice by its own.

    ``a, b = halves(conv_input(x))``; ``a`` is gated by ``sigmoid(mamba(mean of each row))``, scanned down the image,
    and ``b`` by ``sigmoid(mamba(mean of each column))``, scanned to the right; ``y = fuse_out(cat(a, b))``.

    With ``compression`` a slice of ``w`` positions is pooled to ``s = ceil(compression * w)`` strips instead of one
    descriptor: strip ``i`` holds the positions from ``floor(i w / s)`` up to ``floor((i + 1) w / s)``, is scanned
    across the slices by itself, and gates itself.

    Args:
        dim: Channels, even.
        state: Size of the state of each inner channel.
        compression: None for one descriptor a slice; above 0 and up to 1, strips a position.
        bias: Whether the two 1x1 convolutions have a bias.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Raises:
        ValueError: ``dim`` is odd, or ``compression`` is not in (0, 1].

    Source:
        XYScanNet (arXiv 2412.10338), Eq. 4-5, slice-level scan.

    Example:
        >>> InterScan(8)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    def __init__(self, dim: int, *, state: int = 16, compression: float | None = None, bias: bool = False):
        super().__init__()
        self._add_scanner(dim, state, compression, bias)

    def _add_scanner(self, dim: int, state: int, compression: float | None, bias: bool) -> None:
        if compression is not None and not 0 < compression <= 1:
            raise ValueError(f"compression is None or above 0 and at most 1; got {compression}")
        self._add_projections(dim, bias)
        self.compression = compression
        self.mamba = Mamba(dim // 2, state=state)

    def _mixed(self, x: Tensor) -> Tensor:
        x = pointwise(self.conv_input, x)  # b h w d
        if not (has_slice_kernels(x) and self._scans_together()):
            return self._fused(*x.chunk(2, -1))
        alone = is_pointwise(self.conv_input)  # nobody else has the map that it made
        return self.fuse_out(as_image(gate_slices(x, self._gates_of, overwrite=alone)))

    def _scans_together(self) -> bool:
        """Whether the descriptors of rows and of columns may be scanned at once, as nobody sees."""
        own = self.compression is None and type(self).scan is InterScan.scan and type(self.mamba) is Mamba
        return own and not any([hooked(module) for module in self.mamba.modules()])

    def _gates_of(self, means: Tensor) -> Tensor:
        """Gates of slices from what stands for them, ``(b, slices, strips, dim / 2)``, scanned in order."""
        return torch.sigmoid(self.mamba.scan(means, axis="h"))

    def scan(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Gate the rows of ``first`` and the columns of ``second``, ``(b, h, w, dim / 2)`` each."""
        return self._gate_rows(first), self._gate_rows(second.transpose(1, 2)).transpose(1, 2)

    def _scan_together(self, first: Tensor, second: Tensor) -> Tensor:
        if torch.is_grad_enabled() or looked_at():
            return super()._scan_together(first, second)
        y = first.new_empty((*first.shape[:3], self.dim))  # b h w d
        rows, columns = y.chunk(2, -1)
        self._gate_rows(first, rows)
        self._gate_rows(second.transpose(1, 2), columns.transpose(1, 2))
        return y

    def _gate_rows(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        w = x.shape[2]
        strips = 1 if self.compression is None else max(1, math.ceil(self.compression * w - 1e-6))  # 0.07 * 100 > 7
        if w % strips == 0:
            parts = (strips, w // strips)
            x = x.unflatten(2, parts)  # b h s p d
            out = out if out is None else out.unflatten(2, parts)
            gate = self._gates_of(x.mean(3))
            return torch.mul(x, gate[:, :, :, None], out=out).flatten(2, 3)
        member = _strips_of(w, strips, x.device)  # s w
        mean = member.to(x.dtype) / member.sum(1, keepdim=True)
        gate = self._gates_of(mean @ x)
        return torch.mul(x, member.T.to(gate.dtype) @ gate, out=out)

    def scan_strips(self, maps: Iterable[Tensor]) -> ScanStrip:
        """Find the gates of all rows and columns in one pass over ``maps``, ``(b, dim, rows, w)``; then gate strips.

        Means are taken before ``conv_input`` instead of after it, which is the same because both are linear.
        """
        if self.compression is not None:
            raise ValueError("an InterScan with compression cannot be streamed: its strips of columns span many rows")
        means, total = [], None
        for x in maps:
            wide = torch.float64 if x.dtype == torch.float64 else torch.float32
            means.append(x.mean(3, keepdim=True, dtype=wide))
            part = x.sum(2, keepdim=True, dtype=wide)
            total = part if total is None else total + part
        assert total is not None
        row_means = torch.cat(means, 2)
        first, _ = self._halves(row_means.to(x.dtype))
        _, second = self._halves((total / row_means.shape[2]).to(x.dtype))
        row_gates = torch.sigmoid(self.mamba.scan(first, axis="h"))  # b h 1 d/2
        column_gates = torch.sigmoid(self.mamba.scan(second, axis="w"))  # b 1 w d/2
        return lambda strip, a, b: (a * row_gates[:, strip.first : strip.last], b * column_gates)

    def extra_repr(self) -> str:
        """How slices are pooled, for ``repr``."""
        return f"{self.dim}, compression={self.compression}"


def _strips_of(w: int, strips: int, device: torch.device) -> Tensor:
    """``(strips, w)``, whether a position lies in a strip. Products with it sum and spread in a fixed order."""
    strip = ((torch.arange(w, device=device) + 1) * strips - 1) // w
    return strip == torch.arange(strips, device=device)[:, None]
